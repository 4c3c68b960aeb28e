"""A strict reader of WebDataset tars: every byte is accounted for, or the tar is refused.

Python's `tarfile`, as WebDataset uses it, takes a damaged header for the end of the archive and goes on
without a word. Here headers must follow one another, each with its checksum, up to the two zero blocks, and
only zeros may follow. Samples are grouped as WebDataset groups them: the key is the name up to the first dot
of its last part, the extension is the rest. Formats: POSIX.1-2001 ustar and pax, and GNU long names.

    samples(view, where)      the samples of a mapped tar, in order
    index_shard(path, …)      scans a finished token shard, writes its index, returns its manifest entry
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from common.mapped_file import map_file
from data.corpus.index import write_index
from data.corpus.manifest import CRC, INDEX_ROWS, OFFSET, TEXT_BYTES, TOKENS, ShardEntry

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads its end to this
_ZERO = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '<u([24])', 'fortran_order': False, 'shape': \((\d+),\), \} *\n"
)


@dataclass(frozen=True)
class Member:
    """One file of the tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass
class Sample:
    """One WebDataset sample. `members`: extension → member."""

    key: str
    offset: int
    members: dict[str, Member] = field(default_factory=dict)


def samples(view: memoryview, where: str) -> Iterator[Sample]:
    """The samples of a tar, in order.

    Raises RuntimeError, one line with `where`, the member and the byte, at the first thing that is not a
    plain WebDataset tar; ValueError when it is a compressed one.
    """
    current: Sample | None = None
    seen: set[str] = set()
    for member in _members(view, where):
        key, extension = split_name(member.name, where, member.offset)
        if current is None or key != current.key:
            if key in seen:
                _refuse(where, member.offset, f"sample {key!r} comes a second time")
            seen.add(key)
            if current is not None:
                yield current
            current = Sample(key, member.offset)
        if extension in current.members:
            _refuse(where, member.offset, f"sample {key!r} has .{extension} twice")
        if extension.split(".")[0].isdigit():
            _refuse(
                where,
                member.offset,
                f"name {member.name!r}: WebDataset takes the key up to the first dot, "
                f"so its number would not tell it from other samples {key!r}",
            )
        current.members[extension] = member
    if current is not None:
        yield current


def split_name(name: str, where: str, offset: int) -> tuple[str, str]:
    """(key, extension) of a member's name; raises RuntimeError when it has none or could leave a folder."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or not name.isprintable():
        _refuse(where, offset, f"member name {name!r} is not a plain relative path")
    base, dot, extension = parts[-1].partition(".")
    if not (base and dot and extension):
        _refuse(where, offset, f"member name {name!r} has no key or no extension")
    return "/".join([*parts[:-1], base]), extension


def index_shard(path: Path, *, dtype: str, vocab: int) -> ShardEntry:
    """Scans a finished token shard, writes its index beside it and returns its manifest entry.

    Raises RuntimeError, one line, at anything that training could not read: see `token_index`.
    """
    view = map_file(path)
    index, _ = token_index(view, str(path), dtype=dtype, vocab=vocab)
    return write_index(path, index, hashlib.sha256(view).hexdigest())


def token_index(view: memoryview, where: str, *, dtype: str, vocab: int) -> tuple[np.ndarray, list[str]]:
    """The index (uint64 [4, documents]) of a token shard, and the documents' keys.

    A document is KEY.npy, a 1-D array of ids of type `dtype` below `vocab`, and KEY.json with `text_bytes`;
    what else travels beside them (a picture) is not looked into.
    Raises RuntimeError, one line naming shard, sample and byte, at anything else.
    """
    columns: list[tuple[int, int, int, int]] = []
    keys: list[str] = []
    for sample in samples(view, where):
        if not {"npy", "json"} <= set(sample.members):
            found = ", ".join(f".{extension}" for extension in sorted(sample.members))
            _refuse(where, sample.offset, f"sample {sample.key!r} has {found}; a document is .npy and .json")
        start, ids = token_array(view, sample, where, dtype)
        largest = int(ids.max()) if ids.size else -1
        if largest >= vocab:
            _refuse(where, start, f"sample {sample.key!r} holds id {largest}, the vocabulary has {vocab}")
        columns.append((start, ids.size, zlib.crc32(ids.data), _text_bytes(view, sample, where)))
        keys.append(sample.key)
    index = np.array(columns, dtype=np.uint64).reshape(-1, INDEX_ROWS).T
    assert (OFFSET, TOKENS, CRC, TEXT_BYTES) == (0, 1, 2, 3)
    return np.ascontiguousarray(index), keys


def token_array(view: memoryview, sample: Sample, where: str, dtype: str) -> tuple[int, np.ndarray]:
    """(byte offset of the raw ids, the ids without a copy) of a token sample's .npy; pickles are refused."""
    member = sample.members["npy"]
    header = _NPY.match(view[member.offset : member.offset + min(member.size, 256)])
    if header is None:
        _refuse(where, member.offset, f"sample {sample.key!r}: .npy is not a 1-D array of little-endian ids")
    width, count = int(header[1]), int(header[2])
    start = member.offset + header.end()
    if f"uint{8 * width}" != dtype:
        _refuse(where, member.offset, f"sample {sample.key!r} has ids of uint{8 * width}, the corpus {dtype}")
    if start + count * width != member.offset + member.size:
        _refuse(
            where, member.offset, f"sample {sample.key!r}: .npy says {count} ids, its size says otherwise"
        )
    return start, np.frombuffer(view, dtype=f"<u{width}", count=count, offset=start)


def _text_bytes(view: memoryview, sample: Sample, where: str) -> int:
    member = sample.members["json"]
    try:
        value = json.loads(bytes(view[member.offset : member.offset + member.size]))["text_bytes"]
        if type(value) is not int or value < 0:
            raise ValueError(f"text_bytes is {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        _refuse(
            where, member.offset, f"sample {sample.key!r}: .json is no object with text_bytes ({error!r})"
        )
    return value


def _members(view: memoryview, where: str) -> Iterator[Member]:
    for magic, name in _COMPRESSED.items():
        if bytes(view[: len(magic)]) == magic:
            raise ValueError(
                f"{where} is compressed with {name}; shards are read by offset: decompress it first"
            )
    if len(view) % BLOCK or len(view) < 2 * BLOCK:
        _refuse(where, len(view), f"its {len(view)} bytes are not whole tar blocks and an end: cut short?")
    at, long_name, size_override = 0, "", -1
    while True:
        header = bytes(view[at : at + BLOCK])
        if not header:
            _refuse(where, at, "ends without the two zero blocks: cut short?")
        if header == _ZERO:
            break
        size, kind, name = _header(header, where, at)
        body = at + BLOCK
        if kind in b"xL":
            if body + size > len(view):
                _refuse(where, at, "an extended header reaches beyond the end: cut short?")
            payload = bytes(view[body : body + size])
            if kind == b"L":
                long_name = payload.rstrip(b"\0").decode("utf-8", "replace")
            else:
                long_name, size_override = _pax(payload, where, at)
        elif kind in b"0\0":
            size = size if size_override < 0 else size_override
            name = long_name or name
            if body + size > len(view):
                _refuse(where, at, f"member {name!r} reaches beyond the end: cut short?")
            yield Member(name, body, size)
            long_name, size_override = "", -1
        elif kind != b"5" or size:  # a folder's entry holds nothing
            _refuse(
                where, at, f"member {name!r} is of tar type {kind.decode('ascii', 'replace')!r}, not a file"
            )
        if any(view[body + size : body + -size % BLOCK + size]):
            _refuse(where, body + size, f"the padding after member {name!r} is not zero")
        at = body + size + -size % BLOCK
    tail = len(view) - at
    if long_name or size_override >= 0:
        _refuse(where, at, "ends after an extended header, without its member")
    if tail < 2 * BLOCK:
        _refuse(where, at, "ends without the second zero block: cut short?")
    if tail >= RECORD + 2 * BLOCK:
        _refuse(
            where,
            at,
            f"{tail} bytes follow the last member; a tar ends within one record: was its tail zeroed?",
        )
    if any(view[at:]):
        _refuse(where, at, "there is data after the zero block that ends the tar")


def _header(header: bytes, where: str, at: int) -> tuple[int, bytes, str]:
    """(size, type, name) of a header block whose checksum and magic hold."""
    try:
        stated = int(header[148:156].rstrip(b"\0 ") or b"-1", 8)
    except ValueError:
        stated = -1
    # The checksum is taken with its own eight bytes as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
        _refuse(where, at, "no tar header where one must be (its checksum differs)")
    if header[257:263] not in (b"ustar\0", b"ustar "):
        _refuse(where, at, "a tar header without the ustar mark")
    field_ = header[124:136]
    try:
        size = (
            int.from_bytes(field_[1:], "big") if field_[0] == 0x80 else int(field_.rstrip(b"\0 ") or b"0", 8)
        )
    except ValueError:
        _refuse(where, at, "a tar header with an unreadable size")
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    if prefix:
        name = prefix + b"/" + name
    return size, header[156:157], name.decode("utf-8", "replace")


def _pax(payload: bytes, where: str, at: int) -> tuple[str, int]:
    """(path or "", size or -1) of a pax extended header: records of `LENGTH KEY=VALUE newline`."""
    path, size = "", -1
    while payload:
        digits = payload.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 12 else 0
        if not len(digits) + 1 < length <= len(payload) or payload[length - 1 : length] != b"\n":
            _refuse(where, at, "a pax header that cannot be read")
        key, _, value = payload[len(digits) + 1 : length - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "replace")
        elif key == b"size":
            size = int(value) if value.isdigit() else -1
        elif key.startswith(b"GNU.sparse"):
            _refuse(where, at, "a sparse member; write it plain")
        payload = payload[length:]
    return path, size


def _refuse(where: str, at: int, reason: str) -> NoReturn:
    raise RuntimeError(f"{where}, byte {at}: {reason}")
