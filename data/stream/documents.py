"""A corpus's documents one by one, as held-out sets read them: by their place in the corpus, and in parts."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

from common.retry import attempts
from data.corpus.corpus import Corpus, DamagedDocument
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, ShardBytes, written_while_read


class Documents:
    """The documents of a corpus, by their place in it.

    Each is hashed when a part of it is read after one of another document, and again where its shard was
    written to: read in order, a document is hashed once, whatever the number of its parts.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._ends = np.cumsum([entry.documents for entry in corpus.manifest.shards])
        storage = corpus.storage
        self._opened = lru_cache(maxsize=1)(lambda shard: (storage.open(shard), storage.index(shard)))
        self._checked: tuple[int, int] | None = None  # the document found right last, its shard's version

    def ids(self, number: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The ids [begin, end) of a document, int64. Raises RuntimeError where the document is damaged."""
        shard, opened, offset, tokens, _ = self._find(number)
        width = self._corpus.dtype.itemsize
        end = tokens if end is None else min(end, tokens)
        for _ in attempts(READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, 1.0):
            version = opened.version()
            if self._checked != (number, version):
                if damage := self.damage_of(number):
                    raise RuntimeError(str(damage))
                self._checked = number, version
            raw = opened.view[offset + begin * width : offset + end * width]
            ids = np.frombuffer(raw, dtype=self._corpus.dtype).astype(np.int64)
            if opened.version() == version:
                return ids
        raise written_while_read(self._corpus.shard_path(shard))

    def damage_of(self, number: int) -> DamagedDocument | None:
        """What is wrong with a document; None where nothing is."""
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
