"""Tensors in and out of a checkpoint: safetensors files are streamed and hashed while written, and loaded
chunk by chunk.

A file is a safetensors file like any other (https://github.com/huggingface/safetensors#format): an 8-byte
length, a JSON header, raw little-endian bytes. A chunk that is a whole tensor is stored under the tensor's
own name, so any safetensors reader reads what one process wrote; another chunk is stored under
`name@offset,offset`. Nothing here executes what it reads.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from common.files import write_all
from common.retry import repeats
from parallel.engine import Chunk
from trainer.checkpoint.description import described, dtype_name, key_of_chunk
from trainer.checkpoint.finite import is_finite
from trainer.checkpoint.manifest import Manifest, StoredChunk, read_manifest
from trainer.checkpoint.merge import Part
from trainer.checkpoint.pieces.files import DamagedError, FileEntry, file_name
from trainer.checkpoint.reader import DTYPES, Reader

WRITERS = 4  # threads, and so files, of one rank
FILE_BYTES = 32 << 20  # less than this for each is not worth another file
SLICE_BYTES = 4 << 20  # written at a time
CACHED_BYTES = 512 << 10  # hashed, and looked at while it is in a core's cache: a fifth of the hash's time
LOADERS = 4


def write_part(folder: Path, rank: int, chunks: Sequence[Chunk]) -> Part:
    """Write this rank's owned chunks into `folder`, hashed on the way and on disk when this returns.

    Large states go to several files by as many threads. OSError as the system gives it (disk full,
    read-only); RuntimeError, naming the tensor, where a value is not finite.
    """
    return write_batches(folder, rank, [chunks])


def write_batches(folder: Path, rank: int, batches: Iterable[Sequence[Chunk]]) -> Part:
    """As `write_part`, of chunks that come in batches. A batch is on disk when the next is asked for, and
    nothing of it is held: each goes to files of its own.
    """
    files: dict[str, FileEntry] = {}
    written: list[Sequence[Chunk]] = []
    for batch in batches:
        groups = _spread(batch)
        if files and not any(groups):
            continue
        names = [file_name(rank, len(files) + number) for number in range(len(groups))]
        with ThreadPoolExecutor(len(groups)) as pool:
            entries = pool.map(lambda name, group: _write_file(folder / name, group), names, groups)
            files |= dict(zip(names, entries, strict=True))
        written += [[replace(chunk, tensor=chunk.tensor.to("meta")) for chunk in group] for group in groups]
        del batch, groups
    return described(rank, list(files), written, files)


def _spread(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The owned chunks, one list a file."""
    owned = [chunk for chunk in chunks if chunk.owned and chunk.tensor.numel()]
    total = sum(chunk.tensor.nbytes for chunk in owned)
    count = min(WRITERS, max(1, total // FILE_BYTES))
    groups: list[list[Chunk]] = [[] for _ in range(count)]
    loads = [0] * count
    for chunk in sorted(owned, key=lambda chunk: chunk.tensor.nbytes, reverse=True):
        lightest = loads.index(min(loads))
        groups[lightest].append(chunk)
        loads[lightest] += chunk.tensor.nbytes
    return groups


def _write_file(path: Path, chunks: Sequence[Chunk]) -> FileEntry:
    # Widest elements first: every tensor is then aligned to its element size, as the format asks.
    chunks = sorted(chunks, key=lambda chunk: -chunk.tensor.element_size())
    header: dict[str, object] = {}
    at = 0
    for chunk in chunks:
        tensor = chunk.tensor
        header[key_of_chunk(chunk)] = {
            "dtype": dtype_name(chunk),
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    assert len(header) == len(chunks), f"two pieces of one tensor at one place in {path}"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    hasher = xxhash.xxh3_128(head)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, head)
        written = len(head)
        for chunk in chunks:
            dtype = dtype_name(chunk)
            for view in _slices(chunk.tensor):
                for start in range(0, view.nbytes, CACHED_BYTES):
                    block = view[start : start + CACHED_BYTES]
                    hasher.update(block)
                    if not is_finite(block, dtype):
                        what = f"tensor {chunk.name} holds a NaN or an infinity: the run has diverged"
                        remedy = "lower optim.lr or raise optim.eps; earlier checkpoints are as they were"
                        raise repeats(RuntimeError(f"{what}: {remedy}"))
                write_all(fd, view)
                _send_to_disk(fd, written, view.nbytes)
                written += view.nbytes
        os.fsync(fd)
    finally:
        os.close(fd)
    return FileEntry(len(head) + at, hasher.hexdigest())


def _send_to_disk(fd: int, start: int, size: int) -> None:
    """Have the system begin to write these bytes to disk, which it otherwise leaves to fsync: the disk then
    works while the next bytes are hashed. Linux's meaning of this advice (fadvise(2)); a system without it
    writes later.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a file system may not support advice
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)


def _slices(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the tensor's bytes in row-major order, a few MiB at a time, from any device and memory layout."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        tensor = tensor.reshape(-1)
    # A contiguous tensor in CPU memory is not copied; another is, one slice at a time.
    step = (
        len(tensor) if tensor.is_contiguous() and tensor.is_cpu else max(1, SLICE_BYTES // tensor[0].nbytes)
    )
    for start in range(0, len(tensor), step):
        part = tensor[start : start + step].contiguous().cpu()
        data = part.view(torch.uint8).numpy().data.cast("B")
        for at in range(0, data.nbytes, SLICE_BYTES):
            yield data[at : at + SLICE_BYTES]


@dataclass(frozen=True)
class Overlap:
    """The common block of a chunk and a stored chunk, as slices of each."""

    into: tuple[slice, ...]
    out: tuple[slice, ...]
    elements: int


def overlap(chunk: Chunk, stored: StoredChunk) -> Overlap:
    """Return the block that a chunk and a stored chunk, which overlap, have in common."""
    into, out, elements = [], [], 1
    for at, size, stored_at, stored_size in zip(
        chunk.offset, chunk.tensor.shape, stored.offset, stored.shape, strict=True
    ):
        low, high = max(at, stored_at), min(at + size, stored_at + stored_size)
        into.append(slice(low - at, high - at))
        out.append(slice(low - stored_at, high - stored_at))
        elements *= high - low
    return Overlap(tuple(into), tuple(out), elements)


def load(folder: Path, chunks: Sequence[Chunk], manifest: Manifest | None = None) -> None:
    """Fill every chunk's tensor from the stored chunks that overlap it, whatever layout wrote them.

    Every chunk is filled, owned or not. Verify first: this trusts the bytes (`loading` need not).
    RuntimeError, one line, for a tensor that is missing or of another dtype or shape; all are looked at
    before the first byte is copied.
    """
    reader = Reader(folder, manifest)
    for chunk in chunks:
        check_fits(folder, chunk, reader.manifest)
    with ThreadPoolExecutor(LOADERS) as pool:
        for _ in pool.map(lambda chunk: _fill(reader, chunk), chunks):
            pass
    reader.check()


def check_fits(folder: Path, chunk: Chunk, manifest: Manifest) -> None:
    """RuntimeError, one line, unless the checkpoint holds the chunk's tensor, of the same dtype and shape."""
    entry = manifest.tensors.get(chunk.name)
    if entry is None:
        raise RuntimeError(
            f"{folder}: holds no tensor {chunk.name}, which this run has: another model or optimiser?"
        )
    if entry.shape != tuple(chunk.shape):
        raise RuntimeError(
            f"{folder}: tensor {chunk.name} is {list(entry.shape)}, this run has {list(chunk.shape)}"
        )
    if entry.dtype != dtype_name(chunk):
        raise RuntimeError(
            f"{folder}: tensor {chunk.name} is {entry.dtype}, this run has {dtype_name(chunk)}"
        )


def _fill(reader: Reader, chunk: Chunk) -> None:
    stored = reader.manifest.stored(chunk.name, chunk.offset, chunk.tensor.shape)
    filled = sum(copy(reader, chunk, one) for one in stored)
    if filled != chunk.tensor.numel():
        raise DamagedError(
            f"{reader.folder}: tensor {chunk.name}: {filled} of {chunk.tensor.numel()} elements found"
        )


def copy(reader: Reader, chunk: Chunk, stored: StoredChunk) -> int:
    """Copy what a chunk and a stored chunk have in common; return the number of elements."""
    common = overlap(chunk, stored)
    chunk.tensor.detach()[common.into].copy_(reader.read(chunk.name, stored)[common.out])
    return common.elements


def check_no_extra(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """RuntimeError where the checkpoint holds a tensor that is not among `names`, those of all ranks
    together.
    """
    if extra := sorted(manifest.tensors.keys() - set(names)):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise RuntimeError(
            f"{folder}: holds tensor {extra[0]}{more}, which this run has not: another model or optimiser?"
        )


def read_tensor(folder: Path, name: str) -> Tensor:
    """Return one whole tensor, joined from its stored chunks. RuntimeError where the checkpoint has none of
    that name.
    """
    manifest = read_manifest(folder)
    entry = manifest.tensors.get(name)
    if entry is None:
        raise RuntimeError(f"{folder}: holds no tensor {name}")
    whole = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    load(folder, [Chunk(name, whole, entry.shape, (0,) * len(entry.shape), owned=False)], manifest)
    return whole
