"""What is done to a model, block by block, before it runs on many devices.

`torch_engine.parallelize` applies them in this order:

float8.py         8-bit matrix products
tensor.py         tensor parallelism with sequence parallelism, from the model's plan
async_tensor.py   the same with messages behind matrix products
context.py        context parallelism: ranks share a sequence
recompute.py      activation checkpointing, torch.compile
fsdp.py           FSDP2: ZeRO's shards, mixed precision

decoding.py       tensor parallelism for reading token by token
kernels.py        the attention kernel, a choice of the whole process
"""
