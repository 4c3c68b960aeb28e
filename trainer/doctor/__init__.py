"""What the devices and links of this machine do, measured: one rank of `germinal doctor`. Read in this order:

command.py   the process: measures, and rank 0 prints one JSON document
compute.py   matrix products per second
links.py     all-reduce over the ranks, in bytes per second of bus bandwidth
peaks.py     what devices can do at best: data sheets of GPUs, an estimate for CPUs. Torch-free
"""
