"""Folders of models as Hugging Face's `transformers` writes and loads them, without that library and without
torch.

fields.py     config.json, read key by key: a key that is not known to be harmless is refused by name
folder.py     config.json, and which tensor lies where in the safetensors files
mapping.py    `Mapped`: our parameter as a part of their tensor, for both directions
peft_format.py
              PEFT's adapter_config.json, and where its tensors belong
adapter.py    an adapter on disk, PEFT's or ours
meaning.py    the keys of a model's config that decide its shapes and its arithmetic
families/     an architecture a file: their config ↔ ours, and the parameters' mapping
choose.py     folder or config → family
place.py      where a folder has our parameters

`trainer.first_weights` reads such a folder into a run; `trainer.export` writes one.
"""
