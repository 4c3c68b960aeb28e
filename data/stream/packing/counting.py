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
from typing import Any

import numpy as np

from data.config import DataConfig
from data.corpus.corpus import Corpus
from data.corpus.listing.blocks import Blocks, block_bounds, count_blocks
from data.corpus.listing.catalogue import join_blocks
from data.corpus.listing.tables import Table
from data.corpus.manifest import Manifest
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.of_corpus import documents_of

VERSION = 1
WINDOWS = "windows-"  # with which the names of such files begin
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
    def _name(self) -> str:
        return windows_name(self._corpus.manifest, self._packing, self._seq_len)

    @property
    def _identity(self) -> dict[str, Any]:
        return windows_identity(self._corpus.manifest, self._packing, self._seq_len)

    @property
    def listed(self) -> bool:
        """Whether this rank has a catalogue of the corpus."""
        return self._corpus.storage.listing.blocks is not None

    @property
    def damaged(self) -> dict[str, str]:
        """The tables that this rank found damaged, as in `Tables`."""
        return self._corpus.storage.listing.tables.damaged

    def tell(self) -> None:
        """Say which tables are damaged. Of several ranks one does."""
        self._corpus.storage.listing.tables.tell()

    @property
    def _told_by_blocks(self) -> bool:
        none = join_blocks([])
        return self._kind.counted(none, self._seq_len, self._pictures) is not None

    @property
    def _large(self) -> bool:
        return self._corpus.manifest.documents >= KEPT_DOCUMENTS

    def share(self, rank: int = 0, ranks: int = 1, *, lists: bool = True) -> Part:
        """Count the blocks in this rank's share of the shards; reads (and so checks) the indexes of these.

        lists: count for the catalogue too, which some rank lacks.
        """
        corpus, manifest = self._corpus, self._corpus.manifest
        if rank == 0 and self._large:
            what = f"{corpus.storage.path}: counting the sequences of {manifest.documents:,} documents, once"
            print(what, file=sys.stderr, flush=True)
        shards = len(manifest.shards)
        mine = range(shards * rank // ranks, shards * (rank + 1) // ranks)
        blocks, windows = [], [np.zeros(0, dtype=np.int64)]
        for shard in mine:
            index = corpus.storage.index(shard).astype(np.int64)
            if lists:
                bounds = block_bounds(index.shape[1], manifest.block_documents)
                blocks.append(count_blocks(manifest, index, bounds))
            if not self._told_by_blocks:
                windows.append(windows_in(manifest, index, self._packing, self._seq_len))
        return (
            join_blocks(blocks) if lists else None,
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
            self._made.append(listing.made(blocks))
        if packed:
            self.windows = np.concatenate(packed)
            self._made.append((self._name, Table(self._identity, {"windows": self.windows})))
        self._made = [made for made in self._made if self._large or listing.tables.was_damaged(made[0])]

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


def windows_name(manifest: Manifest, packing: str, seq_len: int) -> str:
    """The name of the file of the windows of a corpus."""
    return f"{WINDOWS}{manifest.fingerprint[:16]}-{packing}-{seq_len}"


def windows_identity(manifest: Manifest, packing: str, seq_len: int) -> dict[str, Any]:
    """The head of that file: what the windows depend on. They do not depend on whether pictures are read."""
    return {
        "kind": "windows",
        "version": VERSION,
        "corpus": manifest.fingerprint,
        "packing": packing,
        "seq_len": seq_len,
    }


def windows_in(manifest: Manifest, index: np.ndarray, packing: str, seq_len: int) -> np.ndarray:
    """The windows of each block of one shard, int64 [blocks].

    index: of the shard, int64 [rows, documents].
    """
    bounds = block_bounds(index.shape[1], manifest.block_documents)
    return PACKINGS[packing].count(documents_of(manifest, index, bounds, packing), seq_len)


def mend_catalogue(corpus: Corpus) -> None:
    """Make the catalogue of a small corpus anew where it is damaged, if it can be written. Of several ranks
    one does.
    """
    small = corpus.manifest.documents < KEPT_DOCUMENTS  # the indexes of others take long to read
    if corpus.storage.listing.is_damaged and small:
        counted_alone(Counting(corpus, "cut", 1))


def windows_of(corpora: Sequence[Corpus], cfg: DataConfig) -> list[np.ndarray]:
    """The windows of each block of each corpus, as the config packs them."""
    return [counted_alone(counting) for counting in countings(corpora, cfg)]


def countings(corpora: Sequence[Corpus], cfg: DataConfig) -> list[Counting]:
    """The `Counting` of each corpus, as the config packs them."""
    pictures = cfg.image_size > 0
    return [Counting(corpus, cfg.packing, cfg.seq_len, pictures=pictures) for corpus in corpora]


def counted_alone(counting: Counting) -> np.ndarray:
    """The windows of each block, looked up or counted by this process alone."""
    counting.tell()
    if counting.windows is None:
        counting.join([counting.share(lists=not counting.listed)])
        counting.keep()
    assert counting.windows is not None
    return counting.windows
