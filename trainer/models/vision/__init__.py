"""The vision transformer.

config.py      its keys, and its facts: parameters, FLOPs, the layouts it fits
plan.py        how it is cut, sharded and drawn
vision.py      embedding, blocks, norm and head; any consecutive part of them is a pipeline stage
embedding.py   patches → hidden states, with class token, positions and masked patches
block.py       one transformer block
head.py        pooling and the heads: classes, pixels, an embedding
"""
