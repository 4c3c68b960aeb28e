"""Models that are fine-tuned: which parameters are trained, and what is added to the modules.

config.py     the section `finetune:` of a run's config
plan.py       the plan of a model with what fine-tuning adds and freezes
low_rank.py   LoRA's branch beside a linear layer, and its sum with the layer's matrix
bottleneck.py adapters behind attention and feed-forward layers
tune.py       puts branches and adapters into a model
"""
