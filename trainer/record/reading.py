"""JSON Lines files read while others write them, though a line may be damaged.

A file is read in parts, so that a long one costs no memory. A line that is still being written has no end:
readers leave it for later.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART_BYTES = 64 << 10
LINE_BYTES = 1 << 20  # a longer line is none of ours


def objects(file: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (position behind the line, its object) for each whole line from the position `start` on. The
    object is None where the line is none. Nothing where there is no file.
    """
    if not file.is_file():
        return
    with file.open("rb") as lines:
        lines.seek(start)
        while line := lines.readline(LINE_BYTES):
            start = lines.tell()
            if line.endswith(b"\n"):
                yield start, _object(line)
            elif len(line) == LINE_BYTES:
                yield start, None


def newest(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file from the last line to the first, read from its end. Lines that
    are no objects are left out.
    """
    if not file.is_file():
        return
    with file.open("rb") as lines:
        position, rest = lines.seek(0, os.SEEK_END), b""
        while position:
            begin = max(0, position - PART_BYTES)
            lines.seek(begin)
            data = lines.read(position - begin) + rest
            position = begin
            rest, *whole = data.split(b"\n") if position else [b"", *data.split(b"\n")]
            rest = rest if len(rest) < LINE_BYTES else b""
            for line in reversed(whole):
                if (value := _object(line)) is not None:
                    yield value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
