"""The elements of a JSON array, one at a time, and a bound on how deep they are nested."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import IO

from data.prepare.sources.looks import BOM

# Far below the parser's limit of recursion, which depends on the depth of the caller's stack.
MOST_DEPTH = 500
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{},]')


def is_too_deep(raw: bytes) -> bool:
    """Are brackets nested deeper than `MOST_DEPTH`? Counting them all settles it for most rows."""
    if raw.count(b"[") + raw.count(b"{") <= MOST_DEPTH:
        return False
    depth = 0
    for token in _TOKEN.finditer(raw):
        first = raw[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MOST_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def elements(
    stream: IO[bytes], limit: int, *, head: bytes = b"", line: int = 1, end: re.Pattern[bytes] | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (element, its bytes, the line it begins in) of a JSON array.

    Of an element with more than `limit` bytes only the size is given. Not ijson: it would hold a string of
    any length, and turns half of a surrogate pair into "?".

    head: what was read of the stream, from the array on.
    line: the one in which that begins.
    end: what must follow the array, up to the end of the stream; None: white space.

    Raises EOFError where the array does not end, OSError where more follows it.
    """
    parts: list[bytes] = []
    size, depth, begins, in_string = 0, -1, line, False
    kept = b""  # the last byte of a chunk, if it is a backslash that begins an escape

    def take(data: bytes) -> None:
        nonlocal size, line, begins
        if not size:
            stripped = data.lstrip()
            begins = line + data[: len(data) - len(stripped)].count(b"\n")
            line, data = begins, stripped
        line += data.count(b"\n")
        size += len(data)
        if size <= limit:
            parts.append(data)
        else:
            parts.clear()

    bom = BOM
    for chunk in chain([head] if head else [], iter(partial(stream.read, _CHUNK), b"")):
        chunk, kept, at, start = (kept + chunk).removeprefix(bom), b"", 0, 0
        bom = b""
        while at < len(chunk):
            if in_string:
                at = _REST_OF_STRING.match(chunk, at).end()  # type: ignore[union-attr]
                if at == len(chunk):
                    break
                if chunk[at] != 0x22:
                    kept, chunk = chunk[at:], chunk[:at]  # a backslash, whose character is in the next chunk
                    break
                in_string, at = False, at + 1
                continue
            found = _STRUCTURE.search(chunk, at)
            if found is None:
                break
            at, byte = found.end(), found[0]
            if byte == b'"':
                in_string = True
            elif byte in (b"[", b"{"):
                depth += 1
                if depth == 0:
                    line += chunk[start:at].count(b"\n")
                    start = at
            elif depth == 0 and byte in (b",", b"]"):
                take(chunk[start : at - 1])
                start = at
                element = b"".join(parts).rstrip()
                if element or size or byte == b",":
                    yield element, (size if size > limit else len(element)), begins
                parts.clear()
                size = 0
                if byte == b"]":
                    _nothing_more(chunk[at:], stream, line, end)
                    return
            elif byte in (b"]", b"}"):
                depth -= 1
        take(chunk[start:])
    raise EOFError(f"the JSON array does not end, line {line}: cut short?")


def _nothing_more(rest: bytes, stream: IO[bytes], line: int, end: re.Pattern[bytes] | None) -> None:
    rest = rest or stream.read(_CHUNK)
    if end is not None:
        rest += stream.read(_CHUNK)
        if not end.fullmatch(rest):
            raise OSError(f"what follows the JSON array that ends in line {line} is damaged or cut short")
        return
    while rest:
        if not rest.isspace():
            raise OSError(f"more follows the end of the JSON array in line {line}")
        rest = stream.read(_CHUNK)
