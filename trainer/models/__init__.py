"""The models, what their configs answer, and the layers that they share.

Read in this order:

config.py      `ModelConfig`: what the rest of the project may ask of any model's config, without torch
decoder/       the decoder-only language model
encoder/       BERT and its successors
towers/        models that embed the two sides of a row
pairs.py       what objectives know of those models
vision/        the vision transformer
pictures.py    what objectives know of models that take pictures
keys.py        keys that several configs have
sizes.py       sizes and checks that several configs share
blocks.py      how blocks are cut over ranks and drawn, alike in all transformers here
layers/        what models are put together from
registry.py    `model.kind` → the config of a model
own.py         the config of a model of the user's own, from outside this project
tuned/         what fine-tuning adds to a model, and what it freezes
build.py       a config → its torch module
declared.py    does a model's plan describe its module?

A new model is a folder like decoder/ and a line in registry.py. Its files import torch, `common` and each
other; how it is cut over ranks is declared in its `ModelPlan` (common/model_plan.py), and what its modules
offer to `parallel` beside that in common/module_interfaces.py.
"""
