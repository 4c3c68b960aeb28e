"""What is done to the text of a document, and which documents are left out.

- `clean.py`: read first; the steps on one document, in their order.
- `quality.py`: the published quality rules (Gopher, C4). `hooks.py`: functions of the user's own.
- `decontaminate.py`: which documents share a run of words with an evaluation text.
- `dedup.py`: what documents are compared by; `data.prepare.duplicates` finds duplicates in the whole corpus.
- `words.py`: words and runs of words as 64-bit hashes, with which the other files compare texts.

What a new step on one document touches:

- `clean.py`: the step, its place in `cleaning_steps` and in the order that the docstring states.
- `data/prepare/recipe.py`: a field of `Recipe` and its line under "Cleaning, in this order"; `check`.
- `launch/recipe_help.py`: the line of `germinal prepare --help` for that field.
- `data/prepare/report/step_names.py`: in words, what the tally counts under the step's name.
- `docs/data.md`, "Steps".
- a test in `tests/data/prepare/cleaning/test_clean.py`.
"""
