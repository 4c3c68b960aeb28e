"""Loading and proving in one pass: a byte is read once, hashed, and copied to where it belongs.

The ranks share the proof. A rank proves the files of the rank that has its place, which on the layout that
wrote them are the files that it needs. Of others' files it reads only what overlaps its own chunks.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod
from pathlib import Path

import orjson
import torch
import xxhash
from torch import Tensor

from parallel.engine import Chunk
from trainer.checkpoint.manifest import Manifest, StoredChunk
from trainer.checkpoint.pieces.files import DamagedError, FileEntry, written_by
from trainer.checkpoint.reader import DTYPES, Reader
from trainer.checkpoint.store import LOADERS, Overlap, check_fits, copy, overlap

BLOCK_BYTES = 4 << 20  # read, hashed and copied at a time; a row of the last dims may be larger


def load_and_prove(folder: Path, chunks: Sequence[Chunk], manifest: Manifest, share: Sequence[str]) -> None:
    """Fill every chunk as `store.load` does, and prove the files in `share` (`Files.share_of`).

    DamagedError, one line, where a file is not what was written: the chunks then hold anything. RuntimeError
    as of `store.load`.
    """
    wanted: dict[str, dict[str, list[_Wanted]]] = {name: {} for name in share}
    apart: list[tuple[int, StoredChunk]] = []
    proven = set(share)
    for number, chunk in enumerate(chunks):
        check_fits(folder, chunk, manifest)
        for stored in manifest.stored(chunk.name, chunk.offset, chunk.tensor.shape):
            if not proven.issuperset(stored.files):
                apart.append((number, stored))
            for file in stored.files if proven.issuperset(stored.files) else ():
                block = overlap(chunk, stored)
                wanted[file].setdefault(stored.key, []).append((number, chunk, stored, block))
    reader = Reader(folder, manifest)
    filled = [0] * len(chunks)
    with ThreadPoolExecutor(LOADERS) as pool:
        streams = pool.map(lambda name: _stream(folder / name, manifest, wanted[name]), sorted(proven))
        copies = pool.map(lambda one: (one[0], copy(reader, chunks[one[0]], one[1])), apart)
        for found in streams:
            for number, elements in found:
                filled[number] += elements
        for number, elements in copies:
            filled[number] += elements
    reader.check()
    for chunk, elements in zip(chunks, filled, strict=True):
        if elements != chunk.tensor.numel():
            raise DamagedError(
                f"{folder}: tensor {chunk.name}: {elements} of {chunk.tensor.numel()} elements found"
            )


_Wanted = tuple[
    int, Chunk, StoredChunk, Overlap
]  # number of the chunk, the chunk, what is stored, their block


class _Stream:
    """The bytes of a file in order, each read once and hashed."""

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.path, self.entry = path, entry
        self.at = 0
        self._hasher = xxhash.xxh3_128()
        self._buffer = memoryview(bytearray(BLOCK_BYTES))
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def take(self, size: int) -> memoryview:
        """Return the next bytes, valid until the next call. DamagedError where the file has fewer."""
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        view = self._buffer[:size]
        read = 0
        while read < size:
            got = os.preadv(self._fd, [view[read:]], self.at)
            if not got:
                raise DamagedError(
                    f"{self.path}: {self.at} bytes, {self.entry.bytes} were written: cut short or replaced"
                )
            read, self.at = read + got, self.at + got
        self._hasher.update(view)
        return view

    def skip_to(self, end: int) -> None:
        while self.at < end:
            self.take(min(BLOCK_BYTES, end - self.at))

    def close(self) -> None:
        os.close(self._fd)

    def check(self) -> None:
        """DamagedError unless all bytes are those that were written; the rest of them are read."""
        self.skip_to(self.entry.bytes)
        size = os.fstat(self._fd).st_size
        if size != self.entry.bytes:
            raise DamagedError(
                f"{self.path}: {size} bytes, {self.entry.bytes} were written: cut short or replaced"
            )
        if self._hasher.hexdigest() != self.entry.xxh3_128:
            raise DamagedError(f"{self.path}: damaged: its bytes do not match the hash in the manifest")


def _stream(path: Path, manifest: Manifest, wanted: dict[str, list[_Wanted]]) -> list[tuple[int, int]]:
    """Prove a file and copy what is wanted: entry → the chunks that overlap it. Return (number of the chunk,
    elements) of each copy.
    """
    try:
        stream = _Stream(path, manifest.files[path.name])
        try:
            return list(_copied(stream, manifest, wanted))
        finally:
            stream.close()
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise DamagedError(f"{path}: damaged: not a safetensors file") from None


def _copied(
    stream: _Stream, manifest: Manifest, wanted: dict[str, list[_Wanted]]
) -> Iterator[tuple[int, int]]:
    if written_by(stream.path.name) is None:
        stream.check()
        return
    (length,) = struct.unpack("<Q", stream.take(8))
    if 8 + length > stream.entry.bytes:
        stream.check()  # says so where the bytes are not those that were written
        raise DamagedError(f"{stream.path}: not a safetensors file")
    header = orjson.loads(stream.take(length))
    base = stream.at
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        jobs = wanted.get(key, ())
        if not jobs:
            continue
        _, chunk, stored, _ = jobs[0]
        begin, end = entry["data_offsets"]
        dtype = manifest.tensors[chunk.name].dtype
        size = prod(stored.shape) * DTYPES[dtype].itemsize
        stream.skip_to(base + begin)
        if (entry["dtype"], tuple(entry["shape"]), end - begin, base + begin) != (
            *(dtype, stored.shape, size, stream.at),
        ):
            stream.check()
            raise DamagedError(f"{stream.path}: entry {key} is not what the manifest says: {entry}")
        for at, block in _blocks(stream, stored.shape, DTYPES[dtype]):
            for number, chunk, _, where in jobs:
                yield number, _take_block(chunk, where, at, block)
    stream.check()


def _blocks(
    stream: _Stream, shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield a stored chunk as blocks, (offset in the chunk, values): whole rows of its last dims, as many as
    `BLOCK_BYTES` hold.
    """
    shape = shape or (1,)
    outer = 0  # dims that are walked one index at a time, for what is inside an index is too large
    while outer < len(shape) - 1 and prod(shape[outer + 1 :]) * dtype.itemsize > BLOCK_BYTES:
        outer += 1
    row = prod(shape[outer + 1 :])
    rows = max(1, BLOCK_BYTES // max(1, row * dtype.itemsize))
    for place in product(*(range(size) for size in shape[:outer])):
        for first in range(0, shape[outer], rows):
            count = min(rows, shape[outer] - first)
            data = stream.take(count * row * dtype.itemsize)
            values = torch.frombuffer(data, dtype=dtype, count=count * row)
            inside = (1,) * outer + (count, *shape[outer + 1 :])
            yield (*place, first, *(0,) * (len(shape) - outer - 1)), values.view(inside)


def _take_block(chunk: Chunk, where: Overlap, at: tuple[int, ...], block: Tensor) -> int:
    """Copy the common part of a chunk and a block at `at` in the stored chunk; return its elements."""
    tensor = chunk.tensor.detach()
    if not tensor.ndim:
        tensor.copy_(block.view(()))
        return 1
    into, out, elements = [], [], 1
    for target, source, first, size in zip(where.into, where.out, at, block.shape, strict=True):
        low, high = max(source.start, first), min(source.stop, first + size)
        if low >= high:
            return 0
        into.append(slice(target.start + low - source.start, target.start + high - source.start))
        out.append(slice(low - first, high - first))
        elements *= high - low
    tensor[tuple(into)].copy_(block[tuple(out)])
    return elements
