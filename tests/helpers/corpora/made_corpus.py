"""Corpora for tests, made in milliseconds; indexes and manifest by the functions of `germinal prepare`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.corpus.columns import CLASS, FIRST_TEXT, LABEL, MARKED, Columns
from data.corpus.listing.catalogue import close_corpus
from data.corpus.manifest import Manifest, TokenizerEntry, read_manifest, token_dtype, write_manifest
from data.corpus.scan import index_shard

EOS = 0


def make_corpus(
    folder: Path,
    documents: Sequence[Sequence[int] | np.ndarray],
    *,
    shard_documents: int = 50,
    block_documents: int = 8,
    vocab: int = 50_000,
    tokenizer: bytes = b"{}",
    classes: Sequence[str | None] = (),
    first_texts: Sequence[int] = (),
    marked: Sequence[int | None] = (),
) -> Path:
    """Write a corpus and return its folder.

    documents: the ids of each, ≥ 1; 0 is the separator.
    shard_documents, block_documents: documents of a shard, and of a block.
    vocab: ids are below it; says the type of the ids.
    tokenizer: content of tokenizer.json.
    classes: the class of each document, None where it has none; empty: no labels.
    first_texts: ids of the first of each document's two texts; empty: documents of one text.
    marked: ids of each document that have marks, which come behind them; None: none.
    """
    names = (LABEL,) * bool(classes) + (FIRST_TEXT,) * bool(first_texts) + (MARKED,) * bool(marked)
    further = Columns(names, tuple(sorted({name for name in classes if name is not None})))
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    shards = []
    for number, first in enumerate(range(0, max(1, len(documents)), shard_documents)):
        path = folder / f"shard-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, ids in enumerate(documents[first : first + shard_documents], start=first):
                payload = io.BytesIO()
                np.save(payload, np.asarray(ids, dtype=dtype), allow_pickle=False)
                meta: dict[str, Any] = {"source": "made", "path": f"doc/{place}", "text_bytes": 3 * len(ids)}
                if classes:
                    meta[CLASS] = classes[place]
                if first_texts:
                    meta[FIRST_TEXT] = first_texts[place]
                if marked:
                    meta[MARKED] = marked[place]
                _add(tar, f"{place:08d}.json", json.dumps(meta).encode())
                _add(tar, f"{place:08d}.npy", payload.getvalue())
        shards.append(index_shard(path, dtype=dtype, vocab=vocab, further=further))
    entry = TokenizerEntry("tokenizer.json", hashlib.sha256(tokenizer).hexdigest(), vocab, EOS)
    manifest = Manifest(entry, dtype, block_documents, tuple(shards))
    write_manifest(folder, replace(manifest, columns=further.names, classes=further.classes))
    return folder


def linked_corpus(folder: Path, shards: int) -> Path:
    """Write a corpus, with its catalogue, whose shards of 12 documents are all links to one; return its
    folder.
    """
    made = make_corpus(
        folder / "one", random_documents(12, longest=90), shard_documents=12, block_documents=5
    )
    manifest = read_manifest(made)
    (entry,) = manifest.shards
    corpus = folder / f"of-{shards}"
    corpus.mkdir()
    os.link(made / "tokenizer.json", corpus / "tokenizer.json")
    entries = [replace(entry, file=f"shard-{number:06d}.tar") for number in range(shards)]
    for one in entries:
        os.link(made / entry.file, corpus / one.file)
        os.link(made / entry.index_file, corpus / one.index_file)
    close_corpus(corpus, replace(manifest, shards=tuple(entries)))
    return corpus


def random_documents(
    count: int, *, longest: int = 60, seed: int = 0, vocab: int = 50_000
) -> list[np.ndarray]:
    """Documents of 0 to `longest` random ids, no id the separator."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 50_000, size=rng.integers(0, longest + 1)) for _ in range(count)]


def numbered_documents(lengths: Sequence[int]) -> list[np.ndarray]:
    """Documents whose ids are all different: 1, 2, 3, … across the whole corpus."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end) + 1 for n, end in zip(lengths, ends)]


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    tar.addfile(info, io.BytesIO(payload))
