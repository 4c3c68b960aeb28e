"""A save by many ranks, and what follows it.

staging.py        the copy of the state that is written in the background
board.py          short notes between the ranks, beside the collectives
near.py           what one rank of a host has seen of them, for the host's others
attempt.py        one attempt at a save, coordinated through the notes
verification.py   committed checkpoints read again, by all ranks, in the background
retention.py      which checkpoints stay
"""
