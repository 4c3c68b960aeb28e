"""The windows of one corpus in shuffled order, and where the bytes of their ids are.

A `ShuffledCorpus` opens an *era* when one of its sequences is first read: a run of shuffled blocks whose
windows are shuffled as one (see `order`). Only open eras are in memory: a few numbers a document, whatever
the size of the corpus.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from data.config import DataConfig
from data.corpus.corpus import Corpus, DamagedDocument
from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.stream.order import ShuffledOrder
from data.stream.pack import Fragments, count_windows, packing_of

ERAS_KEPT = 3  # of each corpus: an epoch's end, a step that straddles two eras, and one to spare
UNKNOWN, GOOD, DAMAGED = 0, 1, 2


@dataclass(frozen=True)
class IdSpans:
    """Where the ids are that the fragments of some windows bring; arrays [fragments], int64 unless said.

    fragments: which part of which document is in which columns of which window.
    first_byte: the first of the fragment's ids, in its shard.
    ids: how many ids the fragment brings.
    column: of its first id, among the seq_len + 1 ids of the window. The last of these columns is only a
        target; where a document goes on beyond the window, it holds the document's next id. A column that no
        fragment brings an id for holds a separator.
    views: the bytes of the fragment's shard, a list.
    damaged: whether the fragment's document is damaged, bool.
    unchanged: call it after reading: False where a shard was written to since the documents were checked.
        Raises RuntimeError where a shard has another length now.
    """

    fragments: Fragments
    first_byte: np.ndarray
    ids: np.ndarray
    column: np.ndarray
    views: list[Any]
    damaged: np.ndarray
    unchanged: Callable[[], bool]


class Era:
    """A run of blocks whose windows are shuffled as one.

    shard, place: of each document, the shard and its place in that shard, int64 [documents].
    offset, tokens, crc: its columns of the index, int64 [documents].
    """

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
        self._state = np.zeros(len(self.shard), dtype=np.uint8)
        self._checked = self._versions()  # of the shards, when `_state` was found
        bounds = np.concatenate(([0], np.cumsum(counts)))
        self.packing = packing_of(packing, self.tokens, bounds, seq_len)

    def spans(self, windows: np.ndarray) -> IdSpans:
        """Where the ids of the given windows are; row i of the fragments is windows[i]."""
        fragments = self.packing.fragments(windows)
        document, skip = fragments.document, fragments.skip
        damaged = self._damaged(document)
        reaches_end = fragments.column + fragments.length == self.seq_len
        begin = np.maximum(skip - 1, 0)
        end = np.minimum(skip + fragments.length - 1 + reaches_end, self.tokens[document])
        return IdSpans(
            fragments=fragments,
            first_byte=self.offset[document] + begin * self.corpus.dtype.itemsize,
            ids=end - begin,
            column=fragments.column + (skip == 0),
            views=[self._views[shard] for shard in self.shard[document].tolist()],
            damaged=damaged,
            unchanged=partial(self._is_at, self._checked),
        )

    def damaged_document(self, document: int) -> DamagedDocument:
        """The report on a damaged document of the era."""
        return self.corpus.damaged_document(int(self.shard[document]), int(self.offset[document]))

    def _damaged(self, documents: np.ndarray) -> np.ndarray:
        """Which of these documents are damaged, bool [len(documents)]. A document is hashed on its first use,
        and again where its shard was written to since.
        """
        if (versions := self._versions()) != self._checked:
            changed = [shard for shard, version in versions.items() if version != self._checked[shard]]
            self._state[np.isin(self.shard, changed)] = UNKNOWN
            self._checked = versions
        todo = documents[self._state[documents] == UNKNOWN]
        if todo.size:
            todo = np.unique(todo)
            begin = self.offset[todo]
            end = begin + self.tokens[todo] * self.corpus.dtype.itemsize
            views = self._views
            crcs = [
                zlib.crc32(views[shard][a:b])
                for shard, a, b in zip(self.shard[todo].tolist(), begin.tolist(), end.tolist())
            ]
            self._state[todo] = np.where(np.array(crcs) == self.crc[todo], GOOD, DAMAGED)
        return self._state[documents] == DAMAGED

    def _versions(self) -> dict[int, int]:
        """Shard → version of its bytes, of every shard of the era."""
        return {shard: opened.version() for shard, opened in self._shards.items()}

    def _is_at(self, versions: dict[int, int]) -> bool:
        return self._versions() == versions


class ShuffledCorpus:
    """One corpus's sequences in shuffled order, epoch after epoch.

    corpus: the corpus.
    sequences: how many an epoch has.
    """

    def __init__(self, corpus: Corpus, cfg: DataConfig, key: int) -> None:
        self.corpus = corpus
        self._packing, self._seq_len = cfg.packing, cfg.seq_len
        windows = block_windows(corpus, cfg.packing, cfg.seq_len)
        self.order = ShuffledOrder(windows, cfg.shuffle_blocks, key)
        self.sequences = self.order.sequences
        self.era = lru_cache(maxsize=ERAS_KEPT)(self._open_era)

    def locate(self, ordinals: np.ndarray) -> Iterator[tuple[int, Era, np.ndarray, np.ndarray]]:
        """For each era that sequences of the corpus, by their number in it, int64 [n], are in: (epoch, era,
        which of `ordinals`, their windows of the era).
        """
        for epoch, era, which, windows in self.order.locate(ordinals):
            yield epoch, self.era(epoch, era), which, windows

    def _open_era(self, epoch: int, era: int) -> Era:
        opened = Era(self.corpus, self.order.blocks(epoch, era), self._packing, self._seq_len)
        following = self.order.blocks(epoch, era + 1)
        self.corpus.storage.prefetch(np.unique(self.corpus.block_shard[following]).tolist())
        return opened


def block_windows(corpus: Corpus, packing: str, seq_len: int) -> np.ndarray:
    """Windows of each block, int64 [blocks]. Reads (and so checks) every index."""
    counts = []
    ends = np.searchsorted(corpus.block_shard, np.arange(len(corpus.manifest.shards) + 1))
    for shard, (a, b) in enumerate(pairwise(ends.tolist())):
        tokens = corpus.storage.index(shard)[TOKENS]
        bounds = np.append(corpus.block_first[a:b], tokens.shape[0])
        counts.append(count_windows(packing, tokens, bounds, seq_len))
    return np.concatenate(counts)
