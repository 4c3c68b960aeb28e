"""How gradients are added up over ranks, scaled and divided.

sums.py               losses and counts as a step adds them up
scaling.py            law 3's arithmetic: loss factor, one division, clipping, fp16's loss scale

Three ways to add up over the data ranks, behind the interface `replicas.Reductions`:

replicas.py           whole copies: all-reduce beside backward
rows.py               ZeRO-1 on a CPU: each rank gets the gradients of its rows, and sends their new values
fsdp.py               FSDP's reductions, with a table of what is sent under ZeRO 0-3
fsdp_groups.py        the private parts of FSDP that fsdp.py needs

weight_gradients.py   weight gradients deferred, for schedules that split backward
"""
