"""This process among the ranks.

runtime.py       one rank, from joining the others to the end of its process
launcher.py      which rank this is, by the launcher's environment variables. Torch-free
device.py        which device it computes on
rendezvous.py    where the ranks meet, and whether they fit together. Torch-free
presence.py      which ranks are still there, and messages: one connection a rank. Torch-free
meeting.py       how the other ranks find rank 0. Torch-free
inbox.py         handlers of messages, questions and answers. Torch-free
wire.py          a connection that carries messages. Torch-free
ending.py        ends of the process from outside the main thread. Torch-free
environment.py   environment variables for libraries that take their settings in no other way
"""
