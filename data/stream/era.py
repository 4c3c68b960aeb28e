"""The windows of one corpus in shuffled order, and where the bytes of their ids are.

An *era* is some consecutive blocks of the shuffled order, whose windows are shuffled together (see `order`).
`ShuffledCorpus` opens an era when a sequence of that era is first read. Only open eras are in memory: a few
numbers a document, whatever the size of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from common.retry import repeats
from data.config import DataConfig
from data.corpus.columns import LABEL
from data.corpus.corpus import Corpus, DamagedDocument, DamagedPicture
from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.stream.checks import DocumentChecks, Versions
from data.stream.order import EraBlocks, ShuffledOrder, derive_key
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.of_corpus import documents_of
from data.stream.packing.packing import Fragments

# Eras that stay open in each corpus: the two that a step may straddle (of one epoch, or an epoch's last and
# the next epoch's first), and one to spare.
ERAS_KEPT = 3
NO_CLASS = -1
"""The label of a document whose class is not stated."""


@dataclass(frozen=True)
class IdSpans:
    """Where the ids of some windows' fragments are; arrays [fragments], int64 unless noted.

    fragments: which part of which document is in which columns of which window.
    first_byte: the first of the fragment's ids, in its shard.
    ids: how many ids the fragment brings.
    column: of its first id, among the columns of the row: one more than its inputs. The last of these columns
        is only a target; where a text goes on beyond the row, it holds the text's next id. A column that no
        fragment brings an id for holds a separator.
    views: the bytes of the fragment's shard, a list.
    damaged: whether the fragment's document is damaged, bool.
    labels: the class of the fragment's document, NO_CLASS where none is stated.
    media: its picture's first byte in the shard, length and CRC-32, [3, fragments]; None without pictures.
    versions: (shard, version of its bytes when the documents were checked) for each shard of the era.
    """

    fragments: Fragments
    first_byte: np.ndarray
    ids: np.ndarray
    column: np.ndarray
    views: list[Any]
    damaged: np.ndarray
    labels: np.ndarray
    media: np.ndarray | None
    versions: Versions


class Part(NamedTuple):
    """Some rows of a list of sequences, all of one era.

    rows: which ones; window i of `spans` is sequence rows[i] of the list, int64. The partner of sequence i of
        n is sequence n + i.
    source: the source of the sequences.
    spans: where their ids are.
    """

    rows: np.ndarray
    source: int
    spans: IdSpans


class Era:
    """Some consecutive blocks of the shuffled order, whose windows are shuffled together.

    corpus: the corpus that the era is part of.
    packing, columns: how its documents fill windows; inputs of a row: of a window, or of each of its halves.
    epoch, number: the epoch, and the number of the era in it.
    shard, place: of each document, the shard and its place in that shard, int64 [documents].
    offset, tokens, label: its columns of the index, int64 [documents]; `label` NO_CLASS where none is stated.
    media: those of its picture, int64 [3, documents]; None where pictures are not read.

    kind, seq_len, key: how documents are packed, the inputs of a window, and what crops are drawn from.
    pictures: are pictures read, so that a document without one fills no window?
    """

    def __init__(
        self,
        corpus: Corpus,
        era_blocks: EraBlocks,
        kind: str,
        seq_len: int,
        key: int = 0,
        pictures: bool = False,
    ) -> None:
        self.corpus = corpus
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
        label = corpus.manifest.row(LABEL)
        self.label = np.full_like(self.offset, NO_CLASS) if label is None else index[label]
        self.media = index[corpus.manifest.media_rows] if pictures else None
        self._views = {shard: one.view for shard, one in opened.items()}
        end = self.offset + self.tokens * corpus.dtype.itemsize
        self._checks = DocumentChecks(opened, self.shard, self.offset, end, index[CRC])
        bounds = np.concatenate(([0], np.cumsum(counts)))
        self.packing = PACKINGS[kind](
            documents_of(corpus.manifest, index, bounds, kind, key, pictures), seq_len
        )
        self.columns = self.packing.columns(seq_len)

    def spans(self, windows: np.ndarray) -> IdSpans:
        """Where the ids of the given windows are; the fragments are of the rows of windows[0], windows[1] and
        so on.
        """
        fragments = self.packing.fragments(windows)
        document, opens = fragments.document, fragments.opens
        damaged = self._checks.damaged(document)
        reaches_end = fragments.column + fragments.length == self.columns
        begin = fragments.skip - 1 + opens
        end = np.minimum(begin + fragments.length - opens + reaches_end, fragments.stop)
        return IdSpans(
            fragments=fragments,
            first_byte=self.offset[document] + begin * self.corpus.dtype.itemsize,
            ids=end - begin,
            column=fragments.column + opens,
            views=[self._views[shard] for shard in self.shard[document].tolist()],
            damaged=damaged,
            labels=self.label[document],
            media=None if self.media is None else self.media[:, document],
            versions=self._checks.versions,
        )

    def damaged_document(self, document: int) -> DamagedDocument:
        """The report on a damaged document of the era."""
        return self.corpus.damaged_document(int(self.shard[document]), int(self.offset[document]))

    def damaged_picture(self, document: int, reason: str) -> DamagedPicture:
        """The report on a picture of the era that cannot be shown."""
        assert self.media is not None
        ids, picture = int(self.offset[document]), int(self.media[0, document])
        return self.corpus.damaged_picture(int(self.shard[document]), ids, picture, reason)


class ShuffledCorpus:
    """One corpus's sequences in shuffled order, epoch after epoch.

    corpus: the corpus.
    windows: sequences of each of its blocks, int64 [blocks]; see `data.stream.packing.counting`.
    order: where each sequence is, by its ordinal.
    sequences: how many an epoch has.
    era: `EraBlocks` → its `Era`; the last ERAS_KEPT stay open.
    """

    def __init__(self, corpus: Corpus, cfg: DataConfig, key: int, windows: np.ndarray) -> None:
        self.corpus, self.windows = corpus, windows
        self._packing, self._seq_len, self._key = cfg.packing, cfg.seq_len, key
        self._pictures = cfg.image_size > 0
        self.order = ShuffledOrder(windows, cfg.shuffle_blocks, key)
        self.sequences = self.order.sequences
        self.era = lru_cache(maxsize=ERAS_KEPT)(self._open_era)

    def _open_era(self, era_blocks: EraBlocks) -> Era:
        key = derive_key(self._key, "crops", era_blocks.epoch, era_blocks.era)
        era = Era(self.corpus, era_blocks, self._packing, self._seq_len, key, self._pictures)
        expected = int(self.windows[era_blocks.blocks].sum())
        if era.packing.windows != expected:
            folders = ", ".join(str(folder) for folder in self.corpus.storage.listing.tables.folders)
            raise repeats(
                RuntimeError(
                    f"{self.corpus.storage.path}: the documents of an era fill {era.packing.windows} "
                    f"sequences, and its tables count {expected}: remove catalogue-* and windows-* from "
                    f"{folders}; the same command counts again"
                )
            )
        return era


def check_sequences(what: str, sequences: int, cfg: DataConfig) -> None:
    """Raise ValueError where a corpus, `what`, gives too few sequences for the config's rows."""
    if not sequences:
        reason = (
            "no document has two texts: prepare it with --second-field"
            if cfg.packing == "pair"
            else "its documents have no marks: prepare it with --task"
            if cfg.packing == "marked"
            else "its documents have no tokens: set data.packing=one"
        )
        raise ValueError(f"{what} fills no sequence with data.packing={cfg.packing}: {reason}")
    if cfg.partners and sequences < 2:
        raise ValueError(
            f"{what} has one sequence, and data.partners draws another one: give it more documents, or lower "
            "data.seq_len"
        )


def facts_of(
    parts: Sequence[Part], sequences: int, halves: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(source, label, place of the picture [3]) of each sequence, int64 [sequences]; no places where no
    corpus has pictures.
    """
    source = np.zeros(sequences, dtype=np.int64)
    labels = np.full_like(source, NO_CLASS)
    media = None if parts[0].spans.media is None else np.zeros((3, sequences), dtype=np.int64)
    for part in parts:
        source[part.rows] = part.source
        sequence = part.rows[part.spans.fragments.row // halves]
        labels[sequence] = part.spans.labels
        if media is not None and part.spans.media is not None:
            media[:, sequence] = part.spans.media
    return source, labels, media
