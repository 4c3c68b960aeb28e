"""How many windows each block of a corpus has: all that a start must know of every document.

Most ways to pack tell by the counts in the corpus's catalogue (`data.corpus.listing`). `best_fit` has to
pack every block, at 2 µs a document; a corpus of an earlier version has no catalogue, and all its indexes are
read. Then each rank counts a share of the shards, and the result is kept:

    windows-FINGERPRINT-best_fit-2048.safetensors    beside the corpus, or where that cannot be written in one
                                                     of the folders that `Stream.open` is given

The result depends on neither ranks nor folders, and is held against the documents whenever an era opens
(`data.stream.era`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from data.config import DataConfig
from data.corpus.corpus import Corpus
from data.corpus.listing.blocks import Blocks, count_blocks
from data.corpus.listing.catalogue import join_blocks
from data.corpus.listing.tables import Table
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.of_corpus import documents_of

VERSION = 1
KEPT_DOCUMENTS = 1 << 17  # of a smaller corpus the windows are counted in less than a second: nothing is kept

Part = tuple[Blocks | None, np.ndarray | None]
"""The counts and the windows of the blocks of some neighbouring shards; None where they are known."""


class Counting:
    """The windows of each block of a corpus.

    windows: int64 [blocks]; None where they are neither told by the catalogue nor kept: then every rank
        counts its `share`, and `join`s those of all.
    packing, seq_len: the way to pack, and the inputs of a window.
    pictures: are pictures read, so that a document without one fills no window?
    """

    def __init__(self, corpus: Corpus, packing: str, seq_len: int, *, pictures: bool = False) -> None:
        self._corpus, self._kind = corpus, PACKINGS[packing]
        self._packing, self._seq_len, self._pictures = packing, seq_len, pictures
        self._made: list[tuple[str, Table]] = []
        self.windows = self._look_up()

    def _look_up(self) -> np.ndarray | None:
        listing = self._corpus.storage.listing
        if listing.blocks is not None:
            found = self._kind.counted(listing.blocks, self._seq_len, self._pictures)
            if found is not None:
                return found
        elif self._large:
            return None  # what the catalogue lacks is counted too, or every start would parse the manifest
        if self._told_by_blocks:
            return None
        table = listing.tables.read(self._name, self._identity)
        return None if table is None else table.arrays["windows"]

    @property
    def _told_by_blocks(self) -> bool:
        none = join_blocks([])
        return self._kind.counted(none, self._seq_len, self._pictures) is not None

    @property
    def _large(self) -> bool:
        return self._corpus.manifest.documents >= KEPT_DOCUMENTS

    @property
    def _name(self) -> str:
        return f"windows-{self._corpus.manifest.fingerprint[:16]}-{self._packing}-{self._seq_len}"

    @property
    def _identity(self) -> dict[str, Any]:
        """What the kept windows depend on; they do not depend on whether pictures are read."""
        return {
            "kind": "windows",
            "version": VERSION,
            "corpus": self._corpus.manifest.fingerprint,
            "packing": self._packing,
            "seq_len": self._seq_len,
        }

    def share(self, rank: int = 0, ranks: int = 1) -> Part:
        """Count the blocks in this rank's share of the shards; reads (and so checks) the indexes of these."""
        corpus, manifest = self._corpus, self._corpus.manifest
        if rank == 0 and self._large:
            what = f"{corpus.storage.path}: counting the sequences of {manifest.documents:,} documents, once"
            print(what, file=sys.stderr, flush=True)
        shards = len(manifest.shards)
        mine = range(shards * rank // ranks, shards * (rank + 1) // ranks)
        ends = np.searchsorted(corpus.block_shard, np.arange(mine.start, mine.stop + 1)).tolist()
        blocks, windows = [], [np.zeros(0, dtype=np.int64)]
        for shard, (a, b) in zip(mine, pairwise(ends)):
            index = corpus.storage.index(shard).astype(np.int64)
            bounds = np.append(corpus.block_first[a:b], index.shape[1])
            blocks.append(count_blocks(manifest, index, bounds))
            if not self._told_by_blocks:
                documents = documents_of(corpus, index, bounds, self._packing)
                windows.append(self._kind.count(documents, self._seq_len))
        return (
            join_blocks(blocks) if corpus.storage.listing.blocks is None else None,
            None if self._told_by_blocks else np.concatenate(windows),
        )

    def join(self, parts: Sequence[Part]) -> None:
        """Make `windows` of the shares of all ranks, in their order."""
        listing = self._corpus.storage.listing
        counted = [part for part, _ in parts if part is not None]
        packed = [part for _, part in parts if part is not None]
        if counted:
            blocks = join_blocks(counted)
            self.windows = self._kind.counted(blocks, self._seq_len, self._pictures)
            self._made += [listing.made(blocks)] * self._large
        if packed:
            self.windows = np.concatenate(packed)
            self._made += [(self._name, Table(self._identity, {"windows": self.windows}))] * self._large

    def keep(self, *, last: bool = False) -> None:
        """Write what was counted, where that saves later starts time. Of several ranks one does.

        last: into the last of the folders alone, which all ranks share.
        """
        for name, table in self._made:
            self._corpus.storage.listing.tables.write(name, table, last=last)

    def is_kept(self) -> bool:
        """Whether this rank finds again what was counted."""
        tables = self._corpus.storage.listing.tables
        return all(tables.read(name, table.head) is not None for name, table in self._made)


def windows_of(corpora: Sequence[Corpus], cfg: DataConfig) -> list[np.ndarray]:
    """The windows of each block of each corpus, as the config packs them."""
    return [counted_alone(counting) for counting in countings(corpora, cfg)]


def countings(corpora: Sequence[Corpus], cfg: DataConfig) -> list[Counting]:
    """The `Counting` of each corpus, as the config packs them."""
    pictures = cfg.image_size > 0
    return [Counting(corpus, cfg.packing, cfg.seq_len, pictures=pictures) for corpus in corpora]


def counted_alone(counting: Counting) -> np.ndarray:
    """The windows of each block, looked up or counted by this process alone."""
    if counting.windows is None:
        counting.join([counting.share()])
        counting.keep()
    assert counting.windows is not None
    return counting.windows
