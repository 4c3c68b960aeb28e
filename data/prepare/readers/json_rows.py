"""Documents of lines of JSON, of which a range can be read by itself, and of JSON arrays, element by element.

A row longer than `Recipe.row_bytes` is not held in memory, and a row nested deeper than `MOST_DEPTH` is not
parsed: both are counted with their line, and the rows after them are read.
"""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from data.opening import bounded_line, line_after
from data.prepare.document import Document
from data.prepare.readers.records import from_record, origin_of, too_long, whole
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decoded, open_text
from data.prepare.sources.looks import BOM, binary_format, json_shape
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange

# Far below the parser's limit of recursion, which depends on the depth of the caller's stack.
MOST_DEPTH = 500
_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{},]')


def lines(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each line."""
    file, limit = file_range.file, recipe.row_bytes
    stream, _ = open_text(file.path, recipe)
    with stream:
        # A line's place is its offset in the (decompressed) file, known without reading the lines before.
        at = line_after(stream, file_range.start, file_range.end) if file_range.start else 0
        whole_file, number = file_range.end >= file.bytes, 0
        while whole_file or at < file_range.end:
            line, size = bounded_line(stream, limit)
            if not size:
                break
            if not at:
                _refuse_other_formats(file, line)
            offset, at, number = at, at + size, number + 1
            where = f"{file.relative}, line {number}"
            if file_range.start:
                where += f" after byte {file_range.start}"
            if size > limit:
                tally.add("removed.too_long_document", size, where)
                continue
            line = line.removeprefix(BOM)  # of files with a byte order mark each, joined to one
            if not line or line.isspace():
                continue
            document = _document(line, file, where, recipe, tally, offset=offset)
            if document is not None:
                yield document


def _refuse_other_formats(file: InputFile, head: bytes) -> None:
    if known := binary_format(head):
        raise ValueError(f"{file.path} holds no lines of JSON: by its first bytes it is {known}")
    if re.match(rb"\s*\[\s*({|$)", head.removeprefix(BOM)):
        raise ValueError(f"{file.path} is a JSON array, not lines: name it .json or give --format json")


def array(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each element. A file that turns out to hold lines of JSON is read as `lines`."""
    file = file_range.file
    stream, _ = open_text(file.path, recipe)
    with stream:
        shape = json_shape(stream, recipe.text_field, recipe.row_bytes)
    if shape == "lines":
        yield from lines(file_range, recipe, tally)
        return
    if shape == "text":
        raise ValueError(
            f"{file.path} is neither an array of JSON objects or texts nor lines of JSON: give --format text "
            "to read it as text, or leave it out with --exclude"
        )
    stream, _ = open_text(file.path, recipe)
    with stream:
        for number, (element, size, line) in enumerate(_elements(stream, recipe.row_bytes)):
            where = f"{file.relative}, line {line} (element {number})"
            if size > len(element):
                tally.add("removed.too_long_document", size, where)
                continue
            document = _document(element, file, where, recipe, tally, row=number)
            if document is not None:
                yield document


def _document(
    raw: bytes, file: InputFile, where: str, recipe: Recipe, tally: Tally, **place: int
) -> Document | None:
    if is_too_deep(raw):
        tally.add("removed.nested_too_deeply", len(raw), where)
        return None
    # Without the end of the line: the parser would report what is missing there in the line after it.
    text = decoded(raw.rstrip(b"\r\n"), recipe, tally, where)
    if text is None:
        return None
    try:
        record: Any = json.loads(text)
    except json.JSONDecodeError as error:
        on = f", {error.lineno - 1} lines on" if error.lineno > 1 else ""  # of an element with several lines
        what = f"{where}{on}, column {error.colno}: {error.msg.removesuffix(' at')}"
        tally.add("removed.not_json", len(raw), what)
        return None
    except ValueError as error:  # an integer of too many digits
        tally.add("removed.not_json", len(raw), f"{where}: {error}")
        return None
    if isinstance(record, str) and "row" in place:
        if too_long(record, recipe):
            tally.add("removed.too_long_document", len(raw), where)
            return None
        return Document(whole(record, tally, where), origin_of(file, **place))
    if not isinstance(record, dict):
        tally.add("removed.not_a_json_object", len(raw), where)
        return None
    return from_record(record, file, where, recipe, tally, **place)


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


def _elements(stream: IO[bytes], limit: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (element, its bytes, the line it begins in) of a JSON array.

    Of an element with more than `limit` bytes only the size is given. Not ijson: it would hold a string of
    any length, and turns half of a surrogate pair into "?".

    Raises EOFError where the array does not end, OSError where more follows it.
    """
    parts: list[bytes] = []
    size, depth, line, begins, in_string = 0, -1, 1, 1, False
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

    first = True
    while chunk := stream.read(_CHUNK):
        chunk, kept, at, start = kept + chunk, b"", 0, 0
        if first:
            chunk, first = chunk.removeprefix(BOM), False
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
                    _nothing_more(chunk[at:], stream, line)
                    return
            elif byte in (b"]", b"}"):
                depth -= 1
        take(chunk[start:])
    raise EOFError(f"the JSON array does not end, line {line}: cut short?")


def _nothing_more(rest: bytes, stream: IO[bytes], line: int) -> None:
    rest = rest or stream.read(_CHUNK)
    while rest:
        if not rest.isspace():
            raise OSError(f"more follows the end of the JSON array in line {line}")
        rest = stream.read(_CHUNK)
