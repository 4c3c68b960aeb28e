"""What is examined on one machine, a file a subject; each yields findings as it makes them.

catalogue.py     all of them in order, with the time that each may take
software.py      versions against each other
machine.py       cores, threads, memory, limits, settings of the environment
gpus.py          GPUs: driver, tasks; gpu_state.py: health, clocks, PCIe; gpu_links.py: NVLink, Xid errors
names.py         the own host name, localhost
interfaces.py    network interfaces, InfiniBand, ports
slurm.py         KillWait, preemption, how processes are ended
folder.py        a folder's file system: type, room; folder_work.py: writes, locks, appends, renames
measures.py      matrix products and all-reduce
"""
