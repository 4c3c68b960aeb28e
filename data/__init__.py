"""Corpora of token ids: how they are made, how they are stored, how sequences are read out of them.

    config       the `data:` section of a config
    corpus/      a corpus on a disk or on a server: manifest, shards, indexes, checksums
    stream/      from a sequence's number to a rank's micro-batches: order, packing, loader
    pictures/    a picture's bytes → the views of it that a model is given
    verify/      is every byte of a corpus what its manifest says (`germinal data verify`)
    prepare/     texts, tables and pictures → a corpus (`germinal prepare`)
    tokenizer/   training, loading and using a tokenizer.json
    opening      local or remote files as streams of bytes, decompressed
    scrub        a hook for `prepare --scrub-hook`; its name is part of recipes

    texts ──▶ prepare ──▶ corpus ──▶ stream ──▶ micro-batches
                │            shards on disk
             tokenizer

Read corpus/manifest.py for what a corpus is, then stream/stream.py for the order of its sequences. `prepare`
and `stream` do not import each other; a rank is two integers here (`rank`, `ranks` of the data axis).
"""
