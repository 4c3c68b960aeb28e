"""What a model is trained for: batch → model inputs, model output → a sum over a count.

config.py       the keys and facts of each objective; without torch
registry.py     `objective.kind` → the config of an objective
context.py      what an objective may know of its run: seed, special tokens, which tokens begin words
draws.py        random numbers as functions of (seed, name, sequence number, place)
causal_lm.py    next-token prediction
spans/          span corruption, fill-in-the-middle
masked/         hidden tokens, with or without next-sentence prediction
contrastive.py  contrastive, CLIP's and SigLIP's: rows of the global batch are compared
contrastive_config.py
                their keys
pairs.py        the two sides of a row → model inputs
marked/         tasks whose tokens are marked: instructions, tags, answers
masked_images.py
                masked image modelling, as in SimMIM
classification.py
                the class of a row
picture_config.py
                their keys
pictures.py     a batch's pictures → model inputs
build.py        a config and a context → its objective

The interface is `common.objective.Objective`: the engines call it.
"""
