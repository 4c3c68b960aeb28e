"""The batch step of a SLURM job, which supervises the ranks: one srun step after another. Read in this order:

__main__.py     `python -m launch.cluster.batch FOLDER`, the last line of the batch script
supervision.py  start the ranks, see how they end, start them again, requeue or stop; note each decision
earlier_jobs.py what the earlier jobs of the submission did: when no further one is of use
journal.py      what it says, notes, and writes into the run's events
rank_words.py   the command of a rank, in its container
placing.py      on which nodes of the allocation the ranks run
allocation.py   what SLURM says of the job and its nodes; requeue
guard.py        on a job's other nodes: requeues the job where the batch step's own node is lost
step.py         one srun step: its command, its signals, its end
run_disk.py     work on the run folder, whose disk may hang; job_output.py: and what is printed, beside it
step_output.py  what srun and the ranks print: who failed first, and the ranks' logs

SLURM's ways, as seen with 22.05:

- SIGUSR1 to srun reaches every rank once. SIGTERM to srun has the ranks killed before they can save.
- At a time limit, `scancel` and a requeue, SLURM itself sends SIGTERM to every process of the job, srun and
  this one among them, and SIGKILL after KillWait.
- srun's exit code is the highest of the ranks': where rank 3 fails with 1 and the others are then asked to
  stop, it is 75. The first `srun: error: NODE: task N: …` tells the cause. After a node is lost it may be 0.
"""
