"""The index beside each shard of a local corpus: written once, checked whenever its file may have changed.

write_index(shard, index, sha256)   writes the index of a finished shard
write_array(path, index)            writes an index alone
read_index(path, entry)             reads one index, checked
array_in(bytes)                     the array in the bytes of an index
Indexes(folder, shards)             reads those of a corpus for hours, while other programs may write to them
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from common.files import write_atomically
from common.mapped_file import MappedFile
from common.retry import repeats
from data.corpus.manifest import INDEX_ROWS, MANIFEST, TEXT_BYTES, TOKENS, ShardEntry, index_name

_HEADER_BYTES = 1 << 10  # more than the header of a .npy file of plain integers has


def write_index(shard: Path, index: np.ndarray, sha256: str) -> ShardEntry:
    """Write the index of a finished shard beside it, in one step; return the shard's manifest entry.

    shard: the finished shard.
    index: uint64 [4 + columns, documents], rows as in `data.corpus.manifest`.
    sha256: hash of the shard's bytes, in hex, as they were when the index was made.
    """
    assert index.dtype == np.uint64 and index.ndim == 2 and index.shape[0] >= INDEX_ROWS, index.shape
    return ShardEntry(
        file=shard.name,
        bytes=shard.stat().st_size,
        sha256=sha256,
        documents=index.shape[1],
        tokens=int(index[TOKENS].sum()),
        text_bytes=int(index[TEXT_BYTES].sum()),
        index_xxh3=write_array(shard.with_name(index_name(shard.name)), index),
    )


def write_array(path: Path, index: np.ndarray) -> str:
    """Write an index in one step; return the xxh3_128 of its file, in hex."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(index), allow_pickle=False)
    write_atomically(path, file.getbuffer(), draft=path.with_name(path.name + ".tmp"))
    return xxhash.xxh3_128(file.getbuffer()).hexdigest()


def read_index(path: Path, entry: ShardEntry, rows: int = INDEX_ROWS) -> np.ndarray:
    """The index of one shard, memory-mapped, uint64 [rows, documents], after its hash was compared with the
    manifest's. Raises RuntimeError, one line, where the file is missing or has another hash.
    """
    return _checked(_open(path), path, entry, rows)


class Indexes:
    """The indexes of a local corpus. Each part that is read is a copy of bytes that had the manifest's hash.

    A file is hashed when it is first read, and again where it was replaced or written to since. To notice
    that, a hash of the file's identity and times (`MappedFile.stamp`) is kept, 8 bytes a shard.

    rows: of each index.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardEntry], rows: int = INDEX_ROWS) -> None:
        self._folder, self._shards, self._rows = folder, shards, rows
        self._known = np.zeros(len(shards), dtype=np.int64)  # 0: not read yet

    def read(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """The index of documents [first, end) of a shard, uint64 [rows, documents].

        Raises RuntimeError, one line, where the file cannot be read, or does not have the manifest's hash.
        """
        entry = self._shards[shard]
        path = self._folder / entry.index_file
        while True:
            file = _open(path)
            known, before = hash(file.stamp), int(self._known[shard])
            if known == before:
                index = array_in(file.view)
            else:
                index = _checked(file, path, entry, self._rows, during_run=before != 0)
            part = index[:, first:end].copy()
            if file.version() == 0:  # else the file was written to while it was read
                self._known[shard] = known
                return part


def _open(path: Path) -> MappedFile:
    try:
        return MappedFile(path)
    except OSError as error:
        raise RuntimeError(
            f"index {path} cannot be read: {error.strerror}; restore it or run `germinal prepare` again"
        ) from None


def _checked(
    file: MappedFile, path: Path, entry: ShardEntry, rows: int, *, during_run: bool = False
) -> np.ndarray:
    if xxhash.xxh3_128(file.view).hexdigest() != entry.index_xxh3:
        if during_run:
            raise repeats(
                RuntimeError(
                    f"index {path} was replaced or written to during the run and is another now (its hash "
                    "differs): restore it and its shard; the same command goes on"
                )
            )
        raise RuntimeError(
            f"index {path} is not the one in {MANIFEST} (hash differs): damaged or out of date; "
            "restore it or run `germinal prepare` again"
        )
    index = array_in(file.view)
    totals = (index.shape[1], int(index[TOKENS].sum()), int(index[TEXT_BYTES].sum()))
    if index.shape[0] != rows or totals != (entry.documents, entry.tokens, entry.text_bytes):
        raise RuntimeError(f"index {path} and {MANIFEST} count differently: {totals} against {entry}")
    return index


def array_in(raw: memoryview) -> np.ndarray:
    """The array in the bytes of a .npy file, as `write_index` stores it, without a copy."""
    head = io.BytesIO(bytes(raw[:_HEADER_BYTES]))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return np.frombuffer(raw, dtype, offset=head.tell()).reshape(shape)
