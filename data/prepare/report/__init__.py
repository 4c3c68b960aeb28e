"""The reports of `prepare`: the progress bar, the data card, and what it returns. The counts themselves are
in `data/prepare/tally.py`.

- `progress.py`: the progress bar.
- `composition.py`: what a corpus is made of, by source, licence, language and length.
- `step_names.py`, `line_numbers.py`: the tally's steps and examples, for people.
- `datacard.py`: all of these, in files beside the corpus. `outcome.py`: what the function `prepare` returns.
"""
