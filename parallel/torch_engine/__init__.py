"""FSDP2 × tensor × context × pipeline parallelism.

parallelize.py       from a model's factory to this rank's stages, sharded and initialised
passes.py            forward and backward of a step's micro-batches
local_gradients.py   gradients of this rank between backward and update
engine.py            one optimiser step, evaluation, chunks for checkpoints
"""
