"""Parameters of a source → safetensors files under their names, written a few MiB at a time.

What is written depends on the parameters alone, not on how a checkpoint keeps them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from common.files import write_all, write_durably
from trainer.first_weights.source import BLOCK_BYTES, WeightSource
from trainer.huggingface.folder import INDEX, WEIGHTS
from trainer.huggingface.mapping import Mapped

DTYPES: dict[str, tuple[str, torch.dtype]] = {
    "fp32": ("F32", torch.float32),
    "bf16": ("BF16", torch.bfloat16),
    "fp16": ("F16", torch.float16),
}
"""`--dtype` → its name in safetensors, and torch's."""


@dataclass(frozen=True)
class Written:
    """What was written.

    files: name → xxh3_128 in hexadecimal of each file of weights.
    bytes: of all tensors.
    parameters: elements of all tensors.
    """

    files: Mapping[str, str]
    bytes: int
    parameters: int


def write_weights(
    folder: Path,
    source: WeightSource,
    tensors: Mapping[str, Sequence[Mapped]],
    *,
    dtype: str,
    shard_bytes: int,
) -> Written:
    """Write their tensors into safetensors files of at most `shard_bytes` each, a larger tensor alone in one,
    and the index where there are several; all are on disk when this returns.

    tensors: their name → our parameters in it, in the order of its rows.
    dtype: a key of DTYPES.

    RuntimeError, naming the tensor, where a value is not finite in that dtype.
    """
    size = DTYPES[dtype][1].itemsize
    nbytes = {name: prod(parts[0].whole) * size for name, parts in tensors.items()}
    shards = _shards(nbytes, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [_name(n, len(shards)) for n in range(1, len(shards) + 1)]
    files = {
        name: _write_file(folder / name, source, {one: tensors[one] for one in shard}, dtype)
        for name, shard in zip(names, shards, strict=True)
    }
    total = sum(nbytes.values())
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {
            "metadata": {"total_parameters": total // size, "total_size": total},
            "weight_map": dict(sorted(places.items())),
        }
        write_durably(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    source.check()
    return Written(files, total, total // size)


def _name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _shards(nbytes: Mapping[str, int], most: int) -> list[list[str]]:
    """Divide the tensors, in their order, into groups of at most `most` bytes."""
    shards: list[list[str]] = []
    free = 0
    for name, size in nbytes.items():
        if size > free or not shards:
            shards.append([])
            free = most
        shards[-1].append(name)
        free -= size
    return shards


def _write_file(path: Path, source: WeightSource, tensors: Mapping[str, Sequence[Mapped]], dtype: str) -> str:
    """Write one file; return its hash."""
    name, kind = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor, parts in tensors.items():
        end = at + prod(parts[0].whole) * kind.itemsize
        header[tensor] = {"dtype": name, "shape": list(parts[0].whole), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    hasher = xxhash.xxh3_128(head)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, head)
        for tensor, parts in tensors.items():
            for block in _blocks(source, parts, kind):
                if not bool(block.isfinite().all()):
                    raise RuntimeError(
                        f"tensor {tensor}: a value is not finite as {dtype}: export with --dtype bf16 or fp32"
                    )
                data = block.view(torch.uint8).numpy().data.cast("B")
                hasher.update(data)
                write_all(fd, data)
            source.forget()
        os.fsync(fd)
    finally:
        os.close(fd)
    return hasher.hexdigest()


def _blocks(source: WeightSource, parts: Sequence[Mapped], kind: torch.dtype) -> Iterator[Tensor]:
    """Yield their tensor's elements in row-major order: blocks of rows, each a contiguous tensor."""
    first = parts[0]
    if first.transposed:
        rows, columns = first.whole
        for low, high in _ranges(rows, columns):
            block = torch.empty(high - low, columns, dtype=kind)
            for part in parts:
                height = part.shape[0]
                read = source.read(part.ours, [0, low], [height, high - low])
                block[:, part.first : part.first + height].copy_(read.mT)
            source.forget()
            yield block
        return
    width = first.shape[1:]
    for low, high in _ranges(first.rows, prod(width)):
        block = torch.empty(high - low, *width, dtype=kind)
        for part in parts:
            begin, end = max(low, part.first), min(high, part.first + part.shape[0])
            if begin < end:
                rest = [0] * len(width)
                read = source.read(part.ours, [begin - part.first, *rest], [end - begin, *width])
                block[begin - low : end - low].copy_(read)
        source.forget()
        yield block


def _ranges(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut `rows` rows into blocks of about BLOCK_BYTES in float32."""
    step = max(1, BLOCK_BYTES // (4 * max(1, width)))
    for low in range(0, rows, step):
        yield low, min(low + step, rows)
