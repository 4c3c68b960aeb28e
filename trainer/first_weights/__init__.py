"""Where a run's first weights come from, when they are not drawn: `model.init_from`.

source.py              `WeightSource`: parameters by our names, read block by block
huggingface_source.py  one that is a Hugging Face folder
checkpoint_source.py   one that is a checkpoint of ours
open.py                `model.init_from` → its source; the frozen weights of a run, which no checkpoint holds
match.py               which parameters are taken, enlarged, drawn or dropped
adapter_source.py      an adapter on disk
merged_source.py       a fine-tuned run: its base, with what was trained merged
labels.py              are the classes of a head that is taken those of the corpora?
fill.py                a source → the chunks of an engine; `begin` for a new run, `fill_frozen` at each start

Each rank reads what overlaps its own chunks, a few MiB at a time: files are mapped, and no model is ever
whole anywhere.
"""
