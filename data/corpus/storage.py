"""What a corpus's bytes are read through: the interfaces that `local` and `remote` implement.

A shard may be written to while a run reads it. Its `version` grows then, so a reader compares the version
before and after, and reads again where they differ: READ_AGAIN times at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from data.corpus.listing.catalogue import Listing
    from data.corpus.manifest import Manifest

READ_AGAIN = 1000  # times, because a shard was written to meanwhile
READ_AGAIN_PAUSE_SECONDS = 0.01  # before each
LOOKED_AT = 1024  # shards, by each rank, at the start: the rest is looked at when it is opened


class ShardBytes(Protocol):
    """The bytes of one shard: `view[a:b]` is bytes-like."""

    @property
    def view(self) -> Any: ...

    def version(self) -> int:
        """A number that grows when `view` may show other bytes than before.

        Raises RuntimeError where the shard no longer has the length that it had when it was opened.
        """


class Storage(Protocol):
    """The files of one corpus.

    path: the folder or URL, as messages name it.
    listing: its manifest, and what its catalogue has of its blocks, as they were when it was opened.
    """

    path: str
    listing: Listing

    def manifest(self) -> Manifest:
        """The manifest as it was when the storage was opened."""

    def tokenizer(self) -> bytes:
        """The tokenizer's file.

        Raises RuntimeError where the file is not the one that the corpus was made with.
        """

    def index(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """The index of documents [first, end) of a shard, uint64 [4 + columns, documents], rows as in
        `manifest`.

        Raises RuntimeError where the index cannot be read or does not have the hash in the manifest.
        """

    def check_lengths(self, rank: int = 0, ranks: int = 1) -> None:
        """Raise RuntimeError where a shard does not have the length in the manifest: of this rank's share of
        the shards, LOOKED_AT at most, which are spread over all of them.

        Only storages that can look without a transfer do so; the others check each answer's length.
        """

    def open(self, shard: int) -> ShardBytes:
        """The bytes of a shard."""

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to fetch shards that will be opened soon, where that saves a wait."""


def written_while_read(what: str) -> RuntimeError:
    """The error for a shard, or shards, `what`, that changed during each of READ_AGAIN attempts to read."""
    return RuntimeError(
        f"{what}: written to each of {READ_AGAIN} times that it was read: stop the program that writes; the "
        "same command goes on"
    )
