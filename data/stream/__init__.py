"""From a sequence's number to micro-batches: a token id flows through these files in this order.

    storage       data.corpus     bytes of the shards, checksums
      │ open_corpus
      ▼
    corpus        data.corpus     blocks of documents
      │ windows_of                (packing/counting.py: the windows of each block)
      ▼
    mixture.py    Mixture         which source has the stream's n-th sequence, and its ordinal there
      │ Mixture.locate            (weights.py: from the config to exact weights)
      ▼
    order.py      ShuffledOrder   which window of which blocks is the source's sequence of that ordinal
      │ ShuffledOrder.locate
      ▼
    era.py        Era             opens the blocks; fragments in windows, their bytes, each document checked
      │ Era.spans                 (checks.py finds damage; `Stream._damaged` decides: stop or quarantine)
      ▼
    rows.py       LocatedRows     ids, separators and padding as arrays
      │ LocatedRows.rows
      ▼
    loader.py     Loader          a rank's rows of each step, read ahead in a thread
      │
      ▼
    batch.py      Batch           named tensors → the engine

`stream.py` calls them in this order and is the file to begin with. Beside the flow: `heldout.py`, held-out
corpora document by document, with `documents.py`; `images.py`, the pictures of rows, decoded ahead for
`loader.py`; `tracing.py`, `germinal data inspect`.
"""
