"""What is done to the text of a document, and which documents are left out.

- `clean.py`: read first; the steps on one document, in their order.
- `quality.py`: the published quality rules (Gopher, C4). `hooks.py`: functions of the user's own.
- `decontaminate.py`: which documents share a run of words with an evaluation text.
- `dedup.py`: exact and near duplicates over the whole corpus, from what the survey stored.
- `words.py`: words and runs of words as 64-bit hashes, with which the other files compare texts.
"""
