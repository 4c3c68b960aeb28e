"""This process among the ranks.

runtime.py       one rank, from joining the others to the end of its process
launcher.py      which rank this is, by the launcher's environment variables. Torch-free
device.py        which device it computes on
rendezvous.py    where the ranks look for rank 0, and whether they fit together. Torch-free
slurm.py         what SLURM says of a step: nodes, ports, which rank is where. Torch-free
addresses.py     names → addresses; the network interface of an address. Torch-free
meeting/         how the ranks meet: all connect to rank 0, which tells them to begin
presence.py      which ranks are still there, and messages: one connection a rank. Torch-free
arrivals.py      who has come, and the end of a rank. Torch-free
entrance.py      rank 0's socket, at which the others come. Torch-free
inbox.py         handlers of messages, questions and answers. Torch-free
wire.py          a connection that carries messages. Torch-free
ending.py        ends of the process from outside the main thread. Torch-free
environment.py   environment variables for libraries that take their settings in no other way
"""
