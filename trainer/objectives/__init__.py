"""What a model is trained for: batch → model inputs, model output → a sum over a count.

config.py       the keys of each objective, and `objective.kind` → config; without torch
causal_lm.py    next-token prediction
build.py        a config → its objective

The interface is `common.objective.Objective`: the engines call it.
"""
