"""One run: its config, its parts, the loop, its checkpoints and its record. Read loop.py first.

    __main__.py    the process of one rank: `python -m trainer CONFIG`
       │ config/   YAML and key=value → RunConfig
    run.py         builds every part of the run, in order (`assemble`), and may rewind it (`Run`)
       │ start/    before the first step: do all ranks run the same? take the run folder; build the engine
    loop.py        the training loop
       │ steps.py      the micro-batches of each step, as the ranks agree on them
       │ decide.py     what follows a step: go on, evaluate, save, stop, rewind, fail
       ├ evaluation/   loss and bits per byte of held-out sets
       ├ metrics/      the meter: metrics, progress, trackers, samples, pictures
       └ checkpoint/   save, verify, resume, go back, delete

What these stand on:

state.py       how far a run has come, and what it must share with its checkpoints
ranks.py       outcomes and errors that are the same on every rank
record/        the append-only logs in the run folder
folder/        the run folder itself: what is in it, which start may write there
process/       the operating system: signals, exit, threads, disk, memory, failures as one line
models/, objectives/, optim/   what computes

Beside the loop: verify/ (does this layout compute what one process computes?), trained/, generate/ and
evaluate/ (a trained model, what it writes and what it can do).
"""
