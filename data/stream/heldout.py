"""Held-out corpora as batches, document by document."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from data.config import DataConfig, Heldout
from data.corpus.corpus import Corpus, DamagedDocument, open_corpus
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, ShardBytes, written_while_read
from data.stream.batch import Batch
from data.stream.order import another, derive_key
from data.stream.rows import NO_TOKEN


class HeldoutLoader:
    """A held-out corpus as batches, one document after another; iterating again starts again.

    A document is its separator, its ids and the separator that ends it, as in training, cut into windows of
    `seq_len`; every id and the end are a target exactly once. A window after the first begins with `overlap`
    ids that the one before ended with, as context only: `following` is -1 there. A row holds one document;
    short ones end in padding. All ranks give the same number of batches of one shape: the last ones are
    filled with padding rows (sequence -1, nothing counted).

        a document of 11 ids, seq_len 6, overlap 2 (s: separator, .: padding, -: no target)

        tokens       s 1 2 3 4 5    4 5 6 7 8 9    8 9 10 11 . .
        following    1 2 3 4 5 6    - - 7 8 9 10   - - 11 s  - -

    With data.packing=one a document is one row, as in training: the first window alone.

    heldout: the corpus and its name.
    seq_len: inputs of a row.
    rank, ranks: this data rank, and their number.
    micro_batch: rows of a batch.
    overlap: ids of context at the start of a window, fewer than seq_len.
    max_documents: the first so many documents alone; 0: all.
    cfg: where a remote corpus is cached (`cache_dir`), whether rows are documents (`packing`), and whether
        each row has a partner (`partners`).

    Attributes: `name`; `corpus`; `documents` and `rows`, their numbers; `text_bytes`, the UTF-8 bytes of the
    documents' text: bits per byte = summed loss in nats / ln 2 / text_bytes; 0 where rows leave out the end
    of a document, whose bytes are not known.

    Raises ValueError where the corpus is missing or empty, or has one row and needs partners; RuntimeError
    where it is damaged.
    """

    def __init__(
        self,
        heldout: Heldout,
        *,
        seq_len: int,
        rank: int,
        ranks: int,
        micro_batch: int,
        overlap: int = 0,
        max_documents: int = 0,
        cfg: DataConfig | None = None,
    ) -> None:
        assert 0 <= overlap < seq_len, (overlap, seq_len)
        self.name = heldout.name or heldout.path
        self._cfg = cfg or DataConfig()
        self.corpus = open_corpus(heldout.path, self._cfg)
        self._reader = DocumentReader(self.corpus)
        self._rank, self._ranks, self._micro_batch = rank, ranks, micro_batch
        self._seq_len, self._overlap = seq_len, overlap
        lengths, text_bytes = self.corpus.lengths(max_documents or None)
        self.documents = len(lengths)
        # Windows of each document: one, and one more for every seq_len - overlap inputs beyond it.
        inputs = lengths + (lengths > 0)
        windows = np.where(inputs > 0, 1 + np.maximum(0, -(-(inputs - seq_len) // (seq_len - overlap))), 0)
        self._one = self._cfg.packing == "one"
        if self._one:
            windows = np.minimum(windows, 1)
        self._windows, self._lengths, self._text_bytes = windows, lengths, text_bytes
        self._count()
        if self._cfg.partners and self.rows < 2:
            raise ValueError(
                f"data.heldout: {self.name} has one sequence, and data.partners draws another one: give it "
                "more documents"
            )

    def _count(self) -> None:
        left_out = self._one and (self._lengths[self._windows > 0] > self._seq_len).any()
        self.text_bytes = 0 if left_out else int(self._text_bytes.sum())
        self._windows_end = np.cumsum(self._windows)
        self.rows = int(self._windows_end[-1])

    def damaged(self) -> list[tuple[int, DamagedDocument]]:
        """The damaged ones among the documents that this rank reads, by number. Reads them all."""
        mine = np.arange(self.rows) // self._micro_batch % self._ranks == self._rank
        numbers = np.unique(np.searchsorted(self._windows_end, np.flatnonzero(mine), side="right"))
        found = ((number, self._reader.damage_of(number)) for number in numbers.tolist())
        return [(number, damage) for number, damage in found if damage]

    def leave_out(self, documents: list[int]) -> None:
        """Continue as if these documents were not in the corpus. They must be the same on every rank."""
        self._windows[documents] = self._text_bytes[documents] = 0
        self.documents -= len(documents)
        self._count()

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self.rows // (self._ranks * self._micro_batch))

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            first = (batch * self._ranks + self._rank) * self._micro_batch
            yield self._batch(np.arange(first, first + self._micro_batch))

    def _batch(self, numbers: np.ndarray) -> Batch:
        tokens, following, length = self._rows(numbers)
        arrays = {"tokens": tokens, "following": following}
        if self._one:
            columns = np.arange(self._seq_len)
            padding = columns >= length[:, None]
            positions = np.where(padding, columns - length[:, None], columns)
            arrays |= {"positions": positions, "documents": padding.astype(np.int64), "length": length}
        if self._cfg.partners:
            key = derive_key("heldout partners", self.corpus.manifest.fingerprint)
            drawn = another(np.minimum(numbers, self.rows - 1), self.rows, key)
            drawn = np.where(numbers < self.rows, drawn, self.rows)
            arrays["partner"], arrays["partner_following"], _ = self._rows(drawn)
        named = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(named, tuple(np.where(numbers < self.rows, numbers, -1).tolist()))

    def _rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, following, inputs before the padding) of rows; those from `rows` on are only padding."""
        seq_len, eos = self._seq_len, self.corpus.eos
        tokens = np.full((len(numbers), seq_len), eos, dtype=np.int64)
        following = np.full((len(numbers), seq_len), NO_TOKEN, dtype=np.int64)
        length = np.zeros(len(numbers), dtype=np.int64)
        real = numbers < self.rows
        documents = np.searchsorted(self._windows_end, numbers, side="right")
        for row, number, document in zip(
            np.flatnonzero(real).tolist(), numbers[real].tolist(), documents[real].tolist()
        ):
            before = int(self._windows_end[document - 1]) if document else 0
            begin = (number - before) * (seq_len - self._overlap)
            ids = self._window(document, begin, begin + seq_len + 1)
            context = self._overlap if number > before else 0
            length[row] = len(ids) - 1
            tokens[row, : len(ids) - 1] = ids[:-1]
            following[row, context : len(ids) - 1] = ids[context + 1 :]
        return tokens, following, length

    def _window(self, document: int, begin: int, end: int) -> np.ndarray:
        """Places [begin, end) of a document's separator, its ids and the separator that ends it, int64."""
        length = int(self._lengths[document])
        ids = np.full(min(end, length + 2) - begin, self.corpus.eos, dtype=np.int64)
        inside = self._reader.ids(document, max(0, begin - 1), end - 1)
        at = int(begin == 0)
        ids[at : at + len(inside)] = inside
        return ids


class DocumentReader:
    """Reads the documents of a corpus, by their number in it, whole or in parts.

    A document is hashed when a part of it is read after a part of another document, and again where its shard
    was written to: read in order, a document is hashed once, whatever the number of its parts.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._ends = np.cumsum([entry.documents for entry in corpus.manifest.shards])
        storage = corpus.storage
        self._opened = lru_cache(maxsize=1)(lambda shard: (storage.open(shard), storage.index(shard)))
        self._checked: tuple[int, int] | None = None  # the last document that was right, its shard's version

    def ids(self, number: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The ids [begin, end) of a document, int64. Raises RuntimeError where the document is damaged."""
        shard, opened, offset, tokens, _ = self._find(number)
        width = self._corpus.dtype.itemsize
        end = tokens if end is None else min(end, tokens)
        for _ in range(READ_AGAIN):
            version = opened.version()
            if self._checked != (number, version):
                if damage := self.damage_of(number):
                    raise RuntimeError(str(damage))
                self._checked = number, version
            raw = opened.view[offset + begin * width : offset + end * width]
            ids = np.frombuffer(raw, dtype=self._corpus.dtype).astype(np.int64)
            if opened.version() == version:
                return ids
            time.sleep(READ_AGAIN_PAUSE_SECONDS)
        raise written_while_read(self._corpus.shard_path(shard))

    def damage_of(self, number: int) -> DamagedDocument | None:
        """The report on a document where it is damaged, else None."""
        shard, opened, offset, tokens, crc = self._find(number)
        raw = opened.view[offset : offset + tokens * self._corpus.dtype.itemsize]
        return self._corpus.damaged_document(shard, offset) if zlib.crc32(raw) != crc else None

    def _find(self, number: int) -> tuple[int, ShardBytes, int, int, int]:
        """(shard, its bytes, first byte of the ids in it, ids, their CRC-32) of a document."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        place = number - int(self._ends[shard - 1] if shard else 0)
        opened, index = self._opened(shard)
        offset, tokens, crc, _ = index[:, place].tolist()
        return shard, opened, offset, tokens, crc
