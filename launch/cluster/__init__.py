"""A run as a job of a batch system. Imports no torch.

cluster.py      what a run asks of a cluster: a cluster file, and the options of `germinal submit` over it
submission.py   the folder `runs/NAME/submit/N/`: what a job runs, what it noted, how it ended
"""
