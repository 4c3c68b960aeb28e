"""One model on many devices: from a layout to an engine that steps. Knows models and data by interfaces only.

In the order of reading:

config.py           the `parallel:` section of a run's config
layout/             sizes of the mesh axes, which rank is where, stage cuts, process groups
engine.py           what the training loop sees: Engine, and the types of a rank's part of a tensor
build.py            from a layout to one of the two engines
transforms/         what is done to a model before it runs on many devices
parameters/         a parameter as one rank holds it, and its first values
gradients/          how gradients are added up over ranks, scaled and divided
pipeline/           stages, schedules, sends
torch_engine/       FSDP2 × tensor × context × pipeline parallelism
deepspeed_engine/   ZeRO 0-3 and offloading by DeepSpeed
messages/           collectives inside autograd; the count of what a step sends
world/              this process among the ranks: identity, rendezvous, how it ends
fused_adamw.py      torch's fused AdamW kernel, which both engines' optimisers call
relied_on.py        what is used of other packages that they do not promise
"""
