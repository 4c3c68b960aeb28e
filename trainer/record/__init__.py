"""The append-only logs in the run folder. Read in this order:

sinks.py       JSON Lines files: one write(2) a line, sync before a checkpoint, truncate at a resume
reading.py     JSON Lines read while they are written, though lines may be damaged
events.py      events.jsonl: what happened besides the steps, each with its reason
digest.py      length and hash of the logs at a checkpoint, so that a resume notices what was lost
shared_log.py  logs that several machines write: a file for each, and of the ledger for each range of steps
"""
