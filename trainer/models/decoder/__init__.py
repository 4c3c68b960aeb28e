"""The decoder-only language model.

config.py     its keys, and its facts: parameters, FLOPs, the layouts it fits
plan.py       how it is cut, sharded and drawn
decoder.py    embedding, blocks, norm and head; any consecutive part of them is a pipeline stage
block.py      one transformer block
"""
