"""A corpus folder on a local or mounted disk."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from common.mapped_file import MappedFile
from data.corpus.index import Indexes
from data.corpus.listing.catalogue import look_up
from data.corpus.listing.tables import Tables
from data.corpus.manifest import MANIFEST, Manifest, read_manifest_bytes
from data.corpus.storage import LOOKED_AT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


class LocalStorage:
    """A corpus folder, memory-mapped; see `data.corpus.storage.Storage`.

    A shard or an index that is written to or replaced during a run is noticed before an altered byte is used:
    indexes are compared with the manifest as it was when the corpus was opened, documents with their index.

    spare: folders for tables beside the corpus's own, which may be read-only.

    Raises ValueError where the folder is not a corpus, RuntimeError where its manifest is damaged.
    """

    def __init__(self, path: str, spare: Sequence[Path] = ()) -> None:
        self.path = path
        tables = Tables([Path(path), *spare])
        self.listing = look_up(read_manifest_bytes(path), str(Path(path) / MANIFEST), tables)
        self._manifest = self.listing.manifest
        self._indexes = Indexes(Path(path), self._manifest.shards, self._manifest.index_rows)
        self._open: weakref.WeakValueDictionary[int, MappedFile] = weakref.WeakValueDictionary()

    def manifest(self) -> Manifest:
        """See `Storage`."""
        return self.listing.manifest

    def tokenizer(self) -> bytes:
        """See `Storage`."""
        entry = self._manifest.tokenizer
        try:
            raw = (Path(self.path) / entry.file).read_bytes()
        except OSError as error:
            raise RuntimeError(
                f"{self.path}/{entry.file} cannot be read: {error.strerror}; restore it"
            ) from None
        if (found := hashlib.sha256(raw).hexdigest()) != entry.sha256:
            raise RuntimeError(f"{self.path}/{not_the_tokenizer(entry.file, found, entry.sha256)}")
        return raw

    def index(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """See `Storage`."""
        return self._indexes.read(shard, first, end)

    def check_lengths(self, rank: int = 0, ranks: int = 1) -> None:
        """See `Storage`: by stat(2)."""
        mine = range(rank, len(self._manifest.shards), ranks)
        for shard in mine[:: -(-len(mine) // LOOKED_AT) or 1]:
            entry = self._manifest.shards[shard]
            try:
                length = (Path(self.path) / entry.file).stat().st_size
            except OSError as error:
                raise self._unreadable(shard, error) from None
            self._check_length(shard, length)

    def open(self, shard: int) -> MappedFile:
        """See `Storage`. Raises RuntimeError where the file is missing or has another length."""
        opened = self._open.get(shard)
        if opened is None:
            try:
                opened = MappedFile(Path(self.path) / self._manifest.shards[shard].file)
            except OSError as error:
                raise self._unreadable(shard, error) from None
            self._check_length(shard, len(opened.view))
            self._open[shard] = opened
        return opened

    def prefetch(self, shards: Sequence[int]) -> None:
        """See `Storage`: does nothing, for the system's own read-ahead is enough."""

    def _unreadable(self, shard: int, error: OSError) -> RuntimeError:
        path = f"{self.path}/{self._manifest.shards[shard].file}"
        return RuntimeError(f"shard {path} cannot be read: {error.strerror}; restore it")

    def _check_length(self, shard: int, found: int) -> None:
        entry = self._manifest.shards[shard]
        if found != entry.bytes:
            raise RuntimeError(
                f"shard {self.path}/{entry.file} has {found} bytes, {MANIFEST} says {entry.bytes}: cut short "
                "or replaced; restore it or run `germinal prepare` again"
            )


def not_the_tokenizer(file: str, found: str, expected: str) -> str:
    """The message on a tokenizer file whose SHA-256 is `found`, where the manifest has `expected`."""
    return (
        f"{file} is not the tokenizer that the corpus was made with: sha256 {found[:12]}…, where the "
        f"manifest has {expected[:12]}…: restore the file"
    )
