"""The format of a file by its first bytes, whatever its name."""

from __future__ import annotations

import json
import re
from typing import IO, Any

from data.opening import bounded_line

HEAD = 1 << 13
BOM = b"\xef\xbb\xbf"
_FORMATS = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "a zip archive, as office documents and EPUBs are"),
    (b"\x1f\x8b\x08", "gzip: name it .gz"),
    (b"\x28\xb5\x2f\xfd", "zstandard: name it .zst"),
    (b"\xfd7zXZ\0", "xz: name it .xz"),
    (b"BZh", "bzip2: name it .bz2"),
    (b"PAR1", "Parquet: name it .parquet"),
    (b"ARROW1", "Arrow: name it .arrow"),
    (b"\x93NUMPY", "a NumPy array: name it .npy"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x89HDF", "HDF5"),
    (b"SQLite format 3\0", "SQLite"),
    (b"\x7fELF", "a program"),
    (b"\xd0\xcf\x11\xe0", "an office document"),
)
_SPACE = b" \t\r\n"
_TEXT = rb'"(?:[^"\\]|\\.)*+"'
_MEMBER = rb"\s*+" + _TEXT + rb"\s*+:\s*+(?:" + _TEXT + rb"|[\w.+-]++)\s*+"
_SQUAD = re.compile(rb"\s*+\{(?:" + _MEMBER + rb',)*+\s*+"data"\s*+:\s*+(?=\[)', re.DOTALL)
SQUAD_END = re.compile(rb"\s*+(?:," + _MEMBER + rb")*+\}\s*+", re.DOTALL)  # what follows the array


def binary_format(head: bytes) -> str:
    """The name of the binary format that begins with these bytes, or ""."""
    for magic, name in _FORMATS:
        if head.startswith(magic):
            # A text may begin with these letters; in a file of the format, what follows is no text.
            is_text = magic.isascii() and magic.isalnum() and is_plain_text(head[:HEAD])
            return "" if is_text else name
    return ""


def is_plain_text(head: bytes) -> bool:
    """Are these bytes the beginning of UTF-8 text without control characters?"""
    if re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    for cut in range(min(4, len(head) + 1)):  # the last character may be cut
        try:
            head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


def looks_like_utf16(raw: bytes) -> bool:
    """Is about every other byte of the beginning zero, as in UTF-16 of Western text (and in small numbers of
    two bytes)?
    """
    head = raw[:HEAD]
    if b"\0" not in head or len(head) < 4:
        return False
    zeros = (head[0::2].count(0) / len(head[0::2]), head[1::2].count(0) / len(head[1::2]))
    return max(zeros) > 0.4 and min(zeros) < 0.1


def json_shape(stream: IO[bytes], text_field: str, limit: int) -> str:
    """The shape of a JSON file: "array", "lines" or "text".

    "array": of objects or strings. "lines": JSON objects, each a row. "text": any other JSON, such as a file
    of settings.

    stream: the file from its beginning.
    text_field: a first line with this field is a row.
    limit: bytes of the longest line to look at.
    """
    line, size = b"", 1
    while size and not line:
        line, size = bounded_line(stream, limit)
        line = line.removeprefix(BOM).strip(_SPACE)
    if line.startswith(b"["):
        following = line[1:].lstrip(_SPACE)
        while size and not following:
            following, size = bounded_line(stream, limit)
            following = following.strip(_SPACE)
        return "array" if following[:1] in (b"{", b'"', b"]") else "text"
    if size > limit or not line.startswith(b"{"):
        return "text"
    record = _object(line)
    if record is None:
        return "text"
    if isinstance(record.get(text_field.split(".")[0]), str | dict | list):
        return "lines"
    more, size = b"", 1
    while size and not more:
        more, size = bounded_line(stream, limit)
        more = more.strip(_SPACE)
    return "lines" if more.startswith(b"{") else "text"


def squad_array(head: bytes) -> int:
    """Where the array `data` begins in a file that begins with these bytes and is an object with one, as
    SQuAD's files are; 0 in any other.
    """
    found = _SQUAD.match(head)
    return found.end() if found else 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
