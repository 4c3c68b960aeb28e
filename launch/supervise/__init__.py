"""What to do when the ranks of a run have ended: start them again, stop, tell somebody. Torch-free.

policy.py     the decision, a pure function of the attempts so far
evidence.py   what a run folder tells of an attempt
record.py     restarts and the final stop as events of the run
process.py    whether a process that is known from a file still runs

Whoever watches the ranks uses it: `launch/local` for the ranks of one machine, `launch/cluster` for one srun
step after another.
"""
