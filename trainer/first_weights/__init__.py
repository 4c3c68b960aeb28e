"""Where a run's first weights come from, when they are not drawn: `model.init_from`.

source.py              `WeightSource`: parameters by our names, read block by block
huggingface_source.py  one that is a Hugging Face folder
checkpoint_source.py   one that is a checkpoint of ours
open.py                `model.init_from` → its source
match.py               which parameters are taken, enlarged, drawn or dropped
fill.py                a source → the chunks of an engine: `begin` for a new run, `restore_frozen` for a
                       resumed one whose checkpoints lack what it does not train

Each rank reads what overlaps its own chunks, a few MiB at a time: files are mapped, and no model is ever
whole anywhere.
"""
