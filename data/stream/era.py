"""The windows of one corpus in shuffled order, and where the bytes of their ids are.

An *era* is some consecutive blocks of the shuffled order, whose windows are shuffled together (see `order`).
`ShuffledCorpus` opens an era when a sequence of that era is first read. Only open eras are in memory: a few
numbers a document, whatever the size of the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from data.config import DataConfig
from data.corpus.corpus import Corpus, DamagedDocument
from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.stream.checks import DocumentChecks, Versions
from data.stream.order import EraBlocks, ShuffledOrder
from data.stream.pack import Fragments, count_windows, packing_of

# Eras that stay open in each corpus: the two that a step may straddle (of one epoch, or an epoch's last and
# the next epoch's first), and one to spare.
ERAS_KEPT = 3


@dataclass(frozen=True)
class IdSpans:
    """Where the ids of some windows' fragments are; arrays [fragments], int64 unless noted.

    fragments: which part of which document is in which columns of which window.
    first_byte: the first of the fragment's ids, in its shard.
    ids: how many ids the fragment brings.
    column: of its first id, among the seq_len + 1 ids of the window. The last of these columns is only a
        target; where a document goes on beyond the window, it holds the document's next id. A column that no
        fragment brings an id for holds a separator.
    views: the bytes of the fragment's shard, a list.
    damaged: whether the fragment's document is damaged, bool.
    versions: (shard, version of its bytes when the documents were checked) for each shard of the era.
    """

    fragments: Fragments
    first_byte: np.ndarray
    ids: np.ndarray
    column: np.ndarray
    views: list[Any]
    damaged: np.ndarray
    versions: Versions


class Era:
    """Some consecutive blocks of the shuffled order, whose windows are shuffled together.

    corpus, seq_len: the corpus that the era is part of; the inputs of each window.
    epoch, number: the epoch, and the number of the era in it.
    shard, place: of each document, the shard and its place in that shard, int64 [documents].
    offset, tokens: its columns of the index, int64 [documents].
    """

    def __init__(self, corpus: Corpus, era_blocks: EraBlocks, packing: str, seq_len: int) -> None:
        self.corpus, self.seq_len = corpus, seq_len
        self.epoch, self.number = era_blocks.epoch, era_blocks.era
        storage, blocks = corpus.storage, era_blocks.blocks
        shards = corpus.block_shard[blocks].tolist()
        firsts = corpus.block_first[blocks].tolist()
        counts = corpus.block_documents[blocks].tolist()
        spans = [storage.index(s, first, first + n) for s, first, n in zip(shards, firsts, counts)]
        opened = {shard: storage.open(shard) for shard in dict.fromkeys(shards)}
        storage.prefetch(np.unique(corpus.block_shard[era_blocks.following]).tolist())
        index = np.concatenate(spans, axis=1).astype(np.int64)
        self.shard = np.repeat(shards, counts)
        self.place = np.concatenate([np.arange(first, first + n) for first, n in zip(firsts, counts)])
        self.offset, self.tokens = index[OFFSET], index[TOKENS]
        self._views = {shard: one.view for shard, one in opened.items()}
        end = self.offset + self.tokens * corpus.dtype.itemsize
        self._checks = DocumentChecks(opened, self.shard, self.offset, end, index[CRC])
        bounds = np.concatenate(([0], np.cumsum(counts)))
        self.packing = packing_of(packing, self.tokens, bounds, seq_len)

    def spans(self, windows: np.ndarray) -> IdSpans:
        """Where the ids of the given windows are; row i of the fragments is windows[i]."""
        fragments = self.packing.fragments(windows)
        document, skip = fragments.document, fragments.skip
        damaged = self._checks.damaged(document)
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
            versions=self._checks.versions,
        )

    def damaged_document(self, document: int) -> DamagedDocument:
        """The report on a damaged document of the era."""
        return self.corpus.damaged_document(int(self.shard[document]), int(self.offset[document]))


class ShuffledCorpus:
    """One corpus's sequences in shuffled order, epoch after epoch.

    corpus: the corpus.
    order: where each sequence is, by its ordinal.
    sequences: how many an epoch has.
    era: `EraBlocks` → its `Era`; the last ERAS_KEPT stay open.
    """

    def __init__(self, corpus: Corpus, cfg: DataConfig, key: int) -> None:
        self.corpus = corpus
        self._packing, self._seq_len = cfg.packing, cfg.seq_len
        windows = block_windows(corpus, cfg.packing, cfg.seq_len)
        self.order = ShuffledOrder(windows, cfg.shuffle_blocks, key)
        self.sequences = self.order.sequences
        self.era = lru_cache(maxsize=ERAS_KEPT)(self._open_era)

    def _open_era(self, era_blocks: EraBlocks) -> Era:
        return Era(self.corpus, era_blocks, self._packing, self._seq_len)


def block_windows(corpus: Corpus, packing: str, seq_len: int) -> np.ndarray:
    """Windows of each block, int64 [blocks]. Reads (and so checks) every index."""
    counts = []
    ends = np.searchsorted(corpus.block_shard, np.arange(len(corpus.manifest.shards) + 1))
    for shard, (a, b) in enumerate(pairwise(ends.tolist())):
        tokens = corpus.storage.index(shard)[TOKENS]
        bounds = np.append(corpus.block_first[a:b], tokens.shape[0])
        counts.append(count_windows(packing, tokens, bounds, seq_len))
    return np.concatenate(counts)
