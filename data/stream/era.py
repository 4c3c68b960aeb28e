"""Eras: the windows of a few blocks of a corpus, which are shuffled as one and read together.

An *era* is a run of shuffled blocks whose sequences are shuffled as one. It alone is in memory: a few numbers
a document, whatever the size of the corpus.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import numpy as np

from data.corpus.corpus import Corpus, DamagedDocument
from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.stream.pack import Pieces, count_windows, packing_of

UNKNOWN, GOOD, DAMAGED = 0, 1, 2


def block_windows(corpus: Corpus, packing: str, seq_len: int) -> np.ndarray:
    """Sequences of each block, int64 [blocks]. Reads (and so checks) every index."""
    counts = []
    ends = np.searchsorted(corpus.block_shard, np.arange(len(corpus.manifest.shards) + 1))
    for shard, (a, b) in enumerate(pairwise(ends.tolist())):
        tokens = corpus.storage.index(shard)[TOKENS]
        bounds = np.append(corpus.block_first[a:b], tokens.shape[0])
        counts.append(count_windows(packing, tokens, bounds, seq_len))
    return np.concatenate(counts)


class Era:
    """A run of blocks whose sequences are shuffled as one: what reading them needs, in arrays by document."""

    def __init__(self, corpus: Corpus, blocks: np.ndarray, packing: str, seq_len: int) -> None:
        self.corpus = corpus
        self.seq_len = seq_len
        shards = corpus.block_shard[blocks].tolist()
        firsts = corpus.block_first[blocks].tolist()
        counts = corpus.block_documents[blocks].tolist()
        self._shards = {shard: corpus.storage.open(shard) for shard in dict.fromkeys(shards)}
        self._views = {shard: opened.view for shard, opened in self._shards.items()}
        spans = [corpus.storage.index(s, first, first + n) for s, first, n in zip(shards, firsts, counts)]
        index = np.concatenate(spans, axis=1).astype(np.int64)
        self.shard = np.repeat(shards, counts)
        self.place = np.concatenate([np.arange(first, first + n) for first, n in zip(firsts, counts)])
        self.offset, self.tokens, self.crc = index[OFFSET], index[TOKENS], index[CRC]
        self.state = np.zeros(len(self.shard), dtype=np.uint8)
        self.checked = self.versions()  # the versions that `state` is of
        bounds = np.concatenate(([0], np.cumsum(counts)))
        self.packing = packing_of(packing, self.tokens, bounds, seq_len)

    def check(self, documents: np.ndarray) -> np.ndarray:
        """Which of these documents are damaged, bool [len(documents)]; each is hashed on its first use, and
        again where its shard was written to since.
        """
        if (versions := self.versions()) != self.checked:
            changed = [shard for shard, version in versions.items() if version != self.checked[shard]]
            self.state[np.isin(self.shard, changed)] = UNKNOWN
            self.checked = versions
        todo = documents[self.state[documents] == UNKNOWN]
        if todo.size:
            todo = np.unique(todo)
            begin = self.offset[todo]
            end = begin + self.tokens[todo] * self.corpus.dtype.itemsize
            views = self._views
            crcs = [
                zlib.crc32(views[shard][a:b])
                for shard, a, b in zip(self.shard[todo].tolist(), begin.tolist(), end.tolist())
            ]
            self.state[todo] = np.where(np.array(crcs) == self.crc[todo], GOOD, DAMAGED)
        return self.state[documents] == DAMAGED

    def versions(self) -> dict[int, int]:
        """Shard → version of its bytes, of every shard the era is made of."""
        return {shard: opened.version() for shard, opened in self._shards.items()}

    def damage(self, document: int) -> DamagedDocument:
        """What to say of a damaged document."""
        return self.corpus.damaged_document(int(self.shard[document]), int(self.offset[document]))

    def extents(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first byte in its shard, ids, column) of the ids each piece brings, int64 [pieces].

        The column is one of seq_len + 1: the last one is only a target, and where a document goes on beyond
        the window it holds the document's next id. What no piece brings is a separator.
        """
        reaches_end = pieces.column + pieces.length == self.seq_len
        begin = np.maximum(pieces.skip - 1, 0)
        end = np.minimum(pieces.skip + pieces.length - 1 + reaches_end, self.tokens[pieces.document])
        first = self.offset[pieces.document] + begin * self.corpus.dtype.itemsize
        return first, end - begin, pieces.column + (pieces.skip == 0)

    def views_of(self, documents: np.ndarray) -> list[Any]:
        """The bytes of the shard that each document is in."""
        return [self._views[shard] for shard in self.shard[documents].tolist()]
