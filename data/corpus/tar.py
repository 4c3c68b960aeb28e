"""A strict reader of WebDataset tars: every byte is accounted for, or the tar is refused.

    samples(view, where)   the samples of a mapped tar, in order

Python's `tarfile`, as WebDataset uses it, takes a damaged header for the end of the archive and goes on
without a word. Here headers must follow one another, each with its checksum, up to the two zero blocks, and
only zeros may follow. Samples are grouped as WebDataset groups them: the key is the name up to the first dot
of its last part, the extension is the rest. Formats: POSIX.1-2001 ustar and pax, and GNU long names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

TAR_BLOCK = 512
RECORD = 20 * TAR_BLOCK  # tar pads its end to this
_ZERO = bytes(TAR_BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Member:
    """One file of the tar: its name, the first byte of its content, and its size in bytes."""

    name: str
    offset: int
    size: int


@dataclass
class Sample:
    """One WebDataset sample. `offset`: the first byte of its first member's content; `members`: extension →
    member.
    """

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
                refuse(where, member.offset, f"sample {key!r} comes a second time")
            seen.add(key)
            if current is not None:
                yield current
            current = Sample(key, member.offset)
        if extension in current.members:
            refuse(where, member.offset, f"sample {key!r} has .{extension} twice")
        if extension.split(".")[0].isdigit():
            refuse(
                where,
                member.offset,
                f"name {member.name!r}: WebDataset takes the key up to the first dot, "
                f"so its number would not tell it from other samples {key!r}",
            )
        current.members[extension] = member
    if current is not None:
        yield current


def split_name(name: str, where: str, offset: int) -> tuple[str, str]:
    """(key, extension) of a member's name. Raises RuntimeError where a name has none of them, or is a path
    that could lead out of a folder.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or not name.isprintable():
        refuse(where, offset, f"member name {name!r} is not a plain relative path")
    base, dot, extension = parts[-1].partition(".")
    if not (base and dot and extension):
        refuse(where, offset, f"member name {name!r} has no key or no extension")
    return "/".join([*parts[:-1], base]), extension


def _members(view: memoryview, where: str) -> Iterator[Member]:
    """The files of a tar, in order. Raises as `samples`."""
    for magic, name in _COMPRESSED.items():
        if bytes(view[: len(magic)]) == magic:
            raise ValueError(
                f"{where} is compressed with {name}; shards are read by offset: decompress it first"
            )
    if len(view) % TAR_BLOCK or len(view) < 2 * TAR_BLOCK:
        refuse(where, len(view), f"its {len(view)} bytes are not whole tar blocks and an end: cut short?")
    at, long_name, size_override = 0, "", -1
    while True:
        header = bytes(view[at : at + TAR_BLOCK])
        if not header:
            refuse(where, at, "ends without the two zero blocks: cut short?")
        if header == _ZERO:
            break
        size, kind, name = _header(header, where, at)
        body = at + TAR_BLOCK
        if kind in b"xL":
            if body + size > len(view):
                refuse(where, at, "an extended header reaches beyond the end: cut short?")
            payload = bytes(view[body : body + size])
            if kind == b"L":
                long_name = payload.rstrip(b"\0").decode("utf-8", "replace")
            else:
                long_name, size_override = _pax(payload, where, at)
        elif kind in b"0\0":
            size = size if size_override < 0 else size_override
            name = long_name or name
            if body + size > len(view):
                refuse(where, at, f"member {name!r} reaches beyond the end: cut short?")
            yield Member(name, body, size)
            long_name, size_override = "", -1
        elif kind != b"5" or size:  # a folder's entry holds nothing
            refuse(
                where, at, f"member {name!r} is of tar type {kind.decode('ascii', 'replace')!r}, not a file"
            )
        if any(view[body + size : body + -size % TAR_BLOCK + size]):
            refuse(where, body + size, f"the padding after member {name!r} is not zero")
        at = body + size + -size % TAR_BLOCK
    tail = len(view) - at
    if long_name or size_override >= 0:
        refuse(where, at, "ends after an extended header, without its member")
    if tail < 2 * TAR_BLOCK:
        refuse(where, at, "ends without the second zero block: cut short?")
    if tail >= RECORD + 2 * TAR_BLOCK:
        refuse(
            where,
            at,
            f"{tail} bytes follow the last member; a tar ends within one record: was its tail zeroed?",
        )
    if any(view[at:]):
        refuse(where, at, "there is data after the zero block that ends the tar")


def _header(header: bytes, where: str, at: int) -> tuple[int, bytes, str]:
    """(size, type, name) of a header block whose checksum and magic hold."""
    try:
        stated = int(header[148:156].rstrip(b"\0 ") or b"-1", 8)
    except ValueError:
        stated = -1
    # The checksum is taken with its own eight bytes as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
        refuse(where, at, "no tar header where one must be (its checksum differs)")
    if header[257:263] not in (b"ustar\0", b"ustar "):
        refuse(where, at, "a tar header without the ustar mark")
    field_ = header[124:136]
    try:
        size = (
            int.from_bytes(field_[1:], "big") if field_[0] == 0x80 else int(field_.rstrip(b"\0 ") or b"0", 8)
        )
    except ValueError:
        refuse(where, at, "a tar header with an unreadable size")
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
            refuse(where, at, "a pax header that cannot be read")
        key, _, value = payload[len(digits) + 1 : length - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "replace")
        elif key == b"size":
            size = int(value) if value.isdigit() else -1
        elif key.startswith(b"GNU.sparse"):
            refuse(where, at, "a sparse member; write it plain")
        payload = payload[length:]
    return path, size


def refuse(where: str, at: int, reason: str) -> NoReturn:
    """Raise the RuntimeError for a tar, `where`, that is not as it must be at byte `at`."""
    raise RuntimeError(f"{where}, byte {at}: {reason}")
