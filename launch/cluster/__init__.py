"""A run as a job of a batch system. Imports no torch. Read in this order:

cluster.py      what a run asks of a cluster: a cluster file, and the options of `germinal submit` over it
submission.py   the folder `runs/NAME/submit/N/`: what a job runs, what it noted, how it ended
lines.py        JSON and JSON Lines that may be torn or damaged
elements.py     `--array`: which runs
preflight.py    what is checked before anything is written or sent
sending.py      config and cluster file → submissions; submissions → jobs
code_state.py   the copy of the code that a job runs, its commit and difference
script.py       the batch script, the same for every run, and the words for sbatch
slurm.py        sbatch, squeue, scontrol, scancel, sinfo: each within a bounded time
detached.py     --backend local: a run on this machine, in the background
kubernetes/     a run as objects of Kubernetes
progress.py     how far a run is, by its folder
last_end.py     how a run that was not submitted ended, or that it is being started again
state.py        how a run is, by the queue and its jobs' notes
"""
