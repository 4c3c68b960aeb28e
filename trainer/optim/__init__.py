"""The optimiser over one rank's part of the parameters, and the learning rate.

build.py        config → groups of parameters, and the optimiser over them
no_updates.py   what an engine has that only evaluates
optimizer.py    groups, state and the count of updates; a step updates each group in turn
adamw.py        AdamW, by torch's fused kernel
muon.py         Muon, for hidden matrices
gradients.py    a gradient, or zeros
rounding.py     stochastic rounding, for state in bfloat16
schedule.py     the learning rate of each step
"""
