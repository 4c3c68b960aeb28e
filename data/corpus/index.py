"""The index beside each shard of a local corpus: stored once, checked where its file is not as it was.

write_index(shard, index, sha256)   stores the index of a finished shard
read_index(path, entry)             one index, checked
Indexes(folder, shards)             those of a corpus that is read for hours, while others may write to it
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from common.files import write_atomically
from common.mapped_file import MappedFile
from data.corpus.manifest import INDEX_ROWS, MANIFEST, TEXT_BYTES, TOKENS, ShardEntry, index_name

_HEADER_BYTES = 1 << 10  # more than the header of a .npy file of plain integers has


def write_index(shard: Path, index: np.ndarray, sha256: str) -> ShardEntry:
    """Stores the index (uint64 [4, documents]) of a finished shard beside it, by rename; returns its entry.

    `sha256`: of the shard, as the scan that made the index read it.
    """
    assert index.dtype == np.uint64 and index.ndim == 2 and index.shape[0] == INDEX_ROWS, index.shape
    path = shard.with_name(index_name(shard.name))
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(index), allow_pickle=False)
    write_atomically(path, file.getbuffer(), draft=path.with_name(path.name + ".tmp"))
    return ShardEntry(
        file=shard.name,
        bytes=shard.stat().st_size,
        sha256=sha256,
        documents=index.shape[1],
        tokens=int(index[TOKENS].sum()),
        text_bytes=int(index[TEXT_BYTES].sum()),
        index_xxh3=xxhash.xxh3_128(file.getbuffer()).hexdigest(),
    )


def read_index(path: Path, entry: ShardEntry) -> np.ndarray:
    """The index of one shard, memory-mapped, after its bytes were checked against the manifest.

    Raises RuntimeError, one line, when it is missing, or not the one the manifest was written with.
    """
    return _checked(_open(path), path, entry)


class Indexes:
    """The indexes of a local corpus; of each, what is handed out is a copy of bytes that had the hash in the
    manifest.

    A file is hashed when it is first read, and again where it was replaced or written to since. Of each only
    a hash of what it was known by (`MappedFile.stamp`) is kept, 8 bytes a shard.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]) -> None:
        self._folder, self._shards = folder, shards
        self._known = np.zeros(len(shards), dtype=np.int64)  # 0: not read yet

    def read(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """The index of documents [first, end) of a shard, uint64 [4, documents].

        Raises RuntimeError, one line, where the file cannot be read, or is not the one that the manifest was
        written with, or no longer.
        """
        entry = self._shards[shard]
        path = self._folder / entry.index_file
        while True:
            file = _open(path)
            known, before = hash(file.stamp), int(self._known[shard])
            if known == before:
                index = _array(file.view)
            else:
                index = _checked(file, path, entry, during_run=before != 0)
            part = index[:, first:end].copy()
            if file.version() == 0:  # or it was written to while it was read
                self._known[shard] = known
                return part


def _open(path: Path) -> MappedFile:
    try:
        return MappedFile(path)
    except OSError as error:
        raise RuntimeError(
            f"index {path} cannot be read: {error.strerror}; restore it or run `germinal prepare` again"
        ) from None


def _checked(file: MappedFile, path: Path, entry: ShardEntry, *, during_run: bool = False) -> np.ndarray:
    if xxhash.xxh3_128(file.view).hexdigest() != entry.index_xxh3:
        if during_run:
            raise RuntimeError(
                f"index {path} was replaced or written to during the run and is another now (its hash "
                "differs): restore it and its shard; the same command goes on"
            )
        raise RuntimeError(
            f"index {path} is not the one in {MANIFEST} (hash differs): damaged or out of date; "
            "restore it or run `germinal prepare` again"
        )
    index = _array(file.view)
    totals = (index.shape[1], int(index[TOKENS].sum()), int(index[TEXT_BYTES].sum()))
    if index.shape[0] != INDEX_ROWS or totals != (entry.documents, entry.tokens, entry.text_bytes):
        raise RuntimeError(f"index {path} and {MANIFEST} count differently: {totals} against {entry}")
    return index


def _array(raw: memoryview) -> np.ndarray:
    """The array in the bytes of a .npy file, as `write_index` stores it, without a copy."""
    head = io.BytesIO(bytes(raw[:_HEADER_BYTES]))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return np.frombuffer(raw, dtype, offset=head.tell()).reshape(shape)
