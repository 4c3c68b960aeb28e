"""A run's checkpoint → a folder that `transformers` loads: `germinal export`.

command.py          its process
export.py           the folder, written under another name and then renamed
draft.py            that other folder, and those that killed exports have left
weights.py          the safetensors files, written a few MiB at a time
tokenizer_files.py  the tokenizer, and which of its tokens are special
rows_as_trained.py  the tokenizer of a model whose rows are one text each: its template writes that row
new_folder.py       the folder: whole, or not there
card.py             README.md: what the model is, what it was trained on
figures.py          how well it does: what the run recorded, and what an evaluation found

transformers itself is not needed here.
"""
