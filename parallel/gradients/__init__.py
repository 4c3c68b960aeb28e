"""How gradients are added up over ranks, scaled and divided.

sums.py               losses, counts and what else a step's one reduction carries
comparison.py         losses that compare the rows of the global batch, and ∂loss/∂output of each row
scaling.py            law 3's arithmetic: loss factor, one division, clipping, fp16's loss scale

The torch engine has three ways to add up over the data ranks, behind the interface `replicas.Reductions`.
`parallel.build.build_engine` chooses: FSDP where something is sharded or cast; but rows for ZeRO-1 on a CPU
without a cast and without replicas; all-reduce for the rest. `torch_engine.local_gradients.make_reductions`
makes what was chosen.

replicas.py           whole copies: all-reduce beside backward
rows.py               ZeRO-1 on a CPU: each rank gets the gradients of its rows, and sends their new values
fsdp.py               FSDP's reductions, with a table of what is sent under ZeRO 0-3
fsdp_groups.py        the private parts of FSDP that fsdp.py needs

weight_gradients.py   weight gradients deferred, for schedules that split backward
nothing_drawn.py      a check that no model draws from a generator of the process

The gradient norm: `LocalGradients.squares` in torch_engine/local_gradients.py adds up this rank's squares,
and `TorchEngine._reduce` sums them over all ranks.
"""
