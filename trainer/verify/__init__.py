"""`germinal verify`: does this layout compute what one process computes? Read in this order:

command.py     the process: its arguments, its exit codes
reference.py   one process records the first steps, then repeats them from nudged weights
compare.py     every rank of the layout takes the same steps and measures how far its tensors are off
steps.py       an engine and its batches, for both, without the training loop
deviation.py   how far a tensor is from the reference's: distance and common factor
limits.py      how far it may be, from what the nudged runs changed
report.py      which differences are above their limit, as a document and as tables
traffic.py     `--comms`: the bytes that one step sends, by mesh axis, next to the formula
"""
