"""FSDP2 × tensor × context × pipeline parallelism.

parallelize.py       from a model's factory to this rank's stages, sharded and initialised
passes.py            forward and backward of a step's micro-batches
local_gradients.py   gradients of this rank between backward and update, and their squares for the norm
engine.py            one optimiser step, evaluation, chunks for checkpoints

`parallel.build.build_engine` chooses how gradients are added up over the data ranks (FSDP, all-reduce or
rows; see `parallel.gradients`), and `local_gradients.make_reductions` makes that. The gradient norm is the
root of what `LocalGradients.squares` gives on each rank, summed over all ranks in `TorchEngine._reduce`.
"""
