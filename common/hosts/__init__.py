"""What processes of several hosts need that share a file system.

mounts.py       which file system a folder lies on, and whether its locks hold between hosts
lease_file.py   a process that holds a lease, and the lease's file
lease.py        a folder held by a lease, where locks do not hold
"""
