"""Every node of an allocation, examined at the same time and together. Read in this order:

commands.py      which nodes there are; the srun or ssh that starts the doctor's process on each
channel.py       lines of JSON to and from these processes
examination.py   the doctor's side: one step after another, each on all nodes
member.py        a node's side: makes the steps
links.py         names, connections, clocks and rates between nodes; listener.py answers them
shared.py        one folder as several nodes see it: late or not, locks, appends
reduce.py        an all-reduce over the ranks of all nodes
verdict.py       which node is slow or differs, and which to leave out
"""
