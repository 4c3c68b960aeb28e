"""An opened corpus: its manifest, its blocks of documents, and the bytes of its shards.

A *block* is up to `block_documents` neighbouring documents of one shard: the unit that packing stays inside
and that is shuffled. An *era* is a run of shuffled blocks whose sequences are shuffled as one; it alone is
in memory: a few numbers a document, whatever the size of the corpus.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from data.corpus.manifest import CRC, DTYPES, OFFSET, TEXT_BYTES, TOKENS, Manifest
from data.corpus.scan import BLOCK
from data.stream.pack import Pieces, count_windows, packing_of

UNKNOWN, GOOD, DAMAGED = 0, 1, 2


class ShardBytes(Protocol):
    """The bytes of a shard: `view[a:b]` is bytes-like."""

    @property
    def view(self) -> Any: ...

    def version(self) -> int:
        """A number that grows when `view` may show other bytes than before. RuntimeError where the shard no
        longer has its length.
        """


class Storage(Protocol):
    """Where a corpus's bytes come from."""

    path: str

    def manifest(self) -> Manifest:
        """The manifest. Raises ValueError when the folder is not a corpus."""

    def tokenizer(self) -> bytes:
        """The tokenizer's file. Raises RuntimeError where it is not the one that the corpus was made with."""

    def index(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """The index of documents [first, end) of a shard, uint64 [4, documents]: that of the manifest.
        RuntimeError where it cannot be had.
        """

    def check_lengths(self) -> None:
        """RuntimeError where a shard is not as long as the manifest says, as far as can be told quickly."""

    def open(self, shard: int) -> ShardBytes:
        """The bytes of a shard."""

    def ahead(self, shards: Sequence[int]) -> None:
        """These shards will be wanted soon."""


@dataclass(frozen=True)
class Damage:
    """A document whose bytes are not those the index was made from."""

    shard: str
    sample: str
    offset: int

    def __str__(self) -> str:
        return (
            f"shard {self.shard}: sample {self.sample!r}, byte {self.offset}: its ids do not have the "
            "checksum in the index: damaged or changed; see `germinal data verify`, restore it, or set "
            "data.on_corrupt=quarantine"
        )


class Corpus:
    """A corpus and its table of blocks.

    Raises ValueError when the folder is not a corpus or has no token, RuntimeError when its manifest or an
    index is damaged.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.manifest = manifest = storage.manifest()
        if manifest.tokens == 0:
            raise ValueError(
                f"corpus {storage.path} is empty: no document has a token; prepare it from other sources"
            )
        self.dtype = DTYPES[manifest.dtype]
        self.eos = manifest.tokenizer.eos
        size = manifest.block_documents
        spans = [
            (shard, first, min(size, entry.documents - first))
            for shard, entry in enumerate(manifest.shards)
            for first in range(0, entry.documents, size)
        ]
        table = np.array(spans, dtype=np.int64).reshape(-1, 3)
        self.block_shard, self.block_first, self.block_documents = table.T

    def block_windows(self, packing: str, seq_len: int) -> np.ndarray:
        """Sequences of each block, int64 [blocks]. Reads (and so checks) every index."""
        counts = []
        ends = np.searchsorted(self.block_shard, np.arange(len(self.manifest.shards) + 1))
        for shard, (a, b) in enumerate(pairwise(ends.tolist())):
            tokens = self.storage.index(shard)[TOKENS]
            bounds = np.append(self.block_first[a:b], tokens.shape[0])
            counts.append(count_windows(packing, tokens, bounds, seq_len))
        return np.concatenate(counts)

    def lengths(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids, UTF-8 bytes of text) of the first `limit` documents, int64 [documents]."""
        shards = range(len(self.manifest.shards))
        parts = [self.storage.index(shard)[[TOKENS, TEXT_BYTES]] for shard in shards]
        both = np.concatenate(parts, axis=1)[:, :limit]
        return both[0].astype(np.int64), both[1].astype(np.int64)

    def damage(self, shard: int, offset: int) -> Damage:
        """What to say of the document whose raw ids start at `offset`, when they are damaged."""
        path = f"{self.storage.path}/{self.manifest.shards[shard].file}"
        return Damage(path, self.sample_key(shard, offset), offset)

    def sample_key(self, shard: int, offset: int) -> str:
        """The key of the sample whose raw ids start at `offset`, from the tar header before them."""
        view = self.storage.open(shard).view
        # A .npy header is shorter than a tar block, so the member's data starts at the block before the ids.
        header = (offset - 1) // BLOCK * BLOCK - BLOCK
        name = bytes(view[header : header + 100]).split(b"\0", 1)[0]
        return name.decode("utf-8", "replace").partition(".npy")[0]


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

    def damage(self, document: int) -> Damage:
        """What to say of a damaged document."""
        return self.corpus.damage(int(self.shard[document]), int(self.offset[document]))

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
