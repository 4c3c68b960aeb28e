"""A token shard, read to make its index anew: each document's ids, where they are and their checksum.

index_shard(path, …)     scans a finished shard, writes its index, returns its manifest entry
token_index(view, …)     the index of a mapped shard, and its documents' keys
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from common.mapped_file import map_file
from data.corpus.columns import Columns
from data.corpus.index import write_index
from data.corpus.manifest import CRC, INDEX_ROWS, OFFSET, TEXT_BYTES, TOKENS, ShardEntry
from data.corpus.tar import Sample, refuse, samples

NO_COLUMNS = Columns()
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '<u([24])', 'fortran_order': False, 'shape': \((\d+),\), \} *\n"
)


def index_shard(path: Path, *, dtype: str, vocab: int, further: Columns = NO_COLUMNS) -> ShardEntry:
    """Scan a finished token shard, write its index beside it and return its manifest entry.

    dtype, vocab: type of the ids, and the number that they are below.
    further: the columns of the index beyond the first four.

    Raises as `token_index`.
    """
    view = map_file(path)
    index, _ = token_index(view, str(path), dtype=dtype, vocab=vocab, further=further)
    return write_index(path, index, hashlib.sha256(view).hexdigest())


def token_index(
    view: memoryview, where: str, *, dtype: str, vocab: int, further: Columns = NO_COLUMNS
) -> tuple[np.ndarray, list[str]]:
    """The index (uint64 [4 + columns, documents]) of a token shard, and the documents' keys.

    A document is KEY.npy, a 1-D array of ids of type `dtype` below `vocab`, and KEY.json with `text_bytes`;
    with media, also a picture. Other members of a sample are not read.

    view: the shard.
    where: its name, in errors.
    dtype, vocab: type of the ids, and the number that they are below.
    further: the columns of the index beyond the first four.

    Raises RuntimeError, one line naming shard, sample and byte, at anything that training could not read.
    """
    columns: list[tuple[int, ...]] = []
    keys: list[str] = []
    for sample in samples(view, where):
        if not {"npy", "json"} <= set(sample.members):
            found = ", ".join(f".{extension}" for extension in sorted(sample.members))
            refuse(where, sample.offset, f"sample {sample.key!r} has {found}; a document is .npy and .json")
        start, ids = token_array(view, sample, where, dtype)
        largest = int(ids.max()) if ids.size else -1
        if largest >= vocab:
            refuse(where, start, f"sample {sample.key!r} holds id {largest}, the vocabulary has {vocab}")
        about = _about(view, sample, where)
        first = (start, ids.size, zlib.crc32(ids.data), about["text_bytes"])
        columns.append((*first, *further.read(view, sample, about, where)))
        keys.append(sample.key)
    index = np.array(columns, dtype=np.uint64).reshape(-1, INDEX_ROWS + len(further.names)).T
    assert (OFFSET, TOKENS, CRC, TEXT_BYTES) == (0, 1, 2, 3)
    return np.ascontiguousarray(index), keys


def token_array(view: memoryview, sample: Sample, where: str, dtype: str) -> tuple[int, np.ndarray]:
    """(first byte of the ids, the ids without a copy) of a sample's .npy. Raises RuntimeError for any other
    .npy than a 1-D array of `dtype`; pickles are never opened.
    """
    member = sample.members["npy"]
    header = _NPY.match(view[member.offset : member.offset + min(member.size, 256)])
    if header is None:
        refuse(where, member.offset, f"sample {sample.key!r}: .npy is not a 1-D array of little-endian ids")
    width, count = int(header[1]), int(header[2])
    start = member.offset + header.end()
    if f"uint{8 * width}" != dtype:
        refuse(where, member.offset, f"sample {sample.key!r} has ids of uint{8 * width}, the corpus {dtype}")
    if start + count * width != member.offset + member.size:
        refuse(where, member.offset, f"sample {sample.key!r}: .npy says {count} ids, its size says otherwise")
    return start, np.frombuffer(view, dtype=f"<u{width}", count=count, offset=start)


def _about(view: memoryview, sample: Sample, where: str) -> dict[str, Any]:
    """A sample's JSON, which has `text_bytes`."""
    member = sample.members["json"]
    try:
        about = json.loads(bytes(view[member.offset : member.offset + member.size]))
        value = about["text_bytes"]
        if type(value) is not int or value < 0:
            raise ValueError(f"text_bytes is {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        refuse(where, member.offset, f"sample {sample.key!r}: .json is no object with text_bytes ({error!r})")
    return about
