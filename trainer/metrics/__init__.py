"""What a run measures and shows of itself. Read meter.py first: every step goes through it.

meter.py      a step → metrics.jsonl, ledger.jsonl, quarantine.jsonl, trackers and the live line
speed.py      tokens per second, seconds a step, MFU, peak memory
progress.py   the live line: a bar on a terminal, plain lines elsewhere
trackers.py   wandb, TensorBoard and others, in a thread
samples.py    texts that checkpoints write while the run goes on, in a process of their own
closing.py    the end of a run: loss.png and the closing lines

Read back from the record, without torch:
curves.py     metrics.jsonl → curves
plot.py       curves → a PNG
consumed.py   which step reads a given sequence
"""
