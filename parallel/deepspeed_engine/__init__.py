"""ZeRO 0-3 and offloading by DeepSpeed, driven through Accelerate; the torch engine's result.

build.py          from a layout to an engine
settings.py       DeepSpeed's config, and what it needs on this machine
start.py          start DeepSpeed and Accelerate without a lasting change to the process
engine.py         one optimiser step, evaluation, chunks for checkpoints
optim.py          AdamW over the flat tensors that DeepSpeed makes
masters.py        DeepSpeed's master weights and moments on this rank
master_slice.py   a slice of a flattened parameter as chunks of a checkpoint
"""
