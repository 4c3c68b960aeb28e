"""Documents of text files, whole or split as the recipe says, and of FASTA."""

import codecs
import re
from collections.abc import Iterator
from typing import IO

from data.opening import bounded_line, line_after, open_bytes
from data.prepare.document import Document
from data.prepare.readers.records import origin_of
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decode, decoded, open_text
from data.prepare.sources.looks import BOM, binary_format, looks_like_utf16
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange

_CHUNK = 1 << 20


def text_file(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield one document for the file, or its parts where the recipe splits texts."""
    if recipe.is_splitting:
        yield from _split(file_range, recipe, tally)
        return
    file, limit = file_range.file, recipe.max_document_bytes
    with open_bytes(file.path) as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit and not binary_format(raw):  # a binary file is left out, however long
        raise ValueError(too_long_file(file, f"more than {limit:,}", recipe))
    text = decode(raw, recipe, tally, file.relative)
    if text is None:
        return
    if file.relative.lower().endswith(".json"):
        tally.add("noted.json_as_text", len(raw), file.relative)
    elif text.startswith('{"') and "\n{" in text:
        tally.add("noted.text_like_json_lines", len(raw), file.relative)
    yield Document(text, origin_of(file))


def too_long_file(file: InputFile, size: str, recipe: Recipe) -> str:
    """The message about a file that is one document, and longer than a document may be; `size` in bytes."""
    return (
        f"{file.path} is one document of {size} bytes, and --max-document-bytes is "
        f"{recipe.max_document_bytes:,}: say how to split it with --split-at TEXT, --split-lines or "
        "--split-characters N, raise --max-document-bytes (a worker takes some ten times as much memory), or "
        "leave the file out with --exclude"
    )


def _split(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file = file_range.file
    stream, head = open_text(file.path, recipe)
    with stream:
        if binary_format(head) or b"\0" in head:
            if not file_range.start:
                step = "removed.utf16_without_mark" if looks_like_utf16(head) else "removed.binary"
                tally.add(step, file.bytes, file.relative)
            return
        if recipe.split_lines:
            parts = _lines(stream, file_range, recipe, tally)
        elif recipe.split_at:
            parts = _between(stream, file_range, recipe, tally)
        else:
            parts = _lengths(stream, recipe.split_characters)
        for offset, raw in parts:
            raw = raw if offset else raw.removeprefix(BOM)
            if raw and not raw.isspace():
                text = decoded(raw, recipe, tally, f"{file.relative}, byte {offset}")
                if text is not None:
                    yield Document(text, origin_of(file, offset=offset))


def _lines(
    stream: IO[bytes], file_range: FileRange, recipe: Recipe, tally: Tally
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line without its end) of the lines that begin in the range."""
    file, limit = file_range.file, recipe.max_document_bytes
    at = line_after(stream, file_range.start, file_range.end) if file_range.start else 0
    while file_range.end >= file.bytes or at < file_range.end:
        line, size = bounded_line(stream, limit + 2)
        if not size:
            return
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if size > limit + 2 or len(text) > limit:
            tally.add("removed.too_long_document", size, f"{file.relative}, byte {at}")
        else:
            yield at, text
        at += size


def _between(
    stream: IO[bytes], file_range: FileRange, recipe: Recipe, tally: Tally
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, text between two separators) of the documents that begin in the range.

    `\\n` in the separator matches `\\r\\n` as well. A file without any separator is noted in the tally.

        file from `at` on:   [dropped][buffer: searched, no separator, then not searched yet]

    at: offset in the file of the document's first byte, dropped bytes included; until the first separator is
        found, of where reading began.
    """
    file, limit, separator = file_range.file, recipe.max_document_bytes, recipe.separator_bytes
    pattern, longest = re.escape(separator), len(separator)
    if b"\r" not in separator:
        pattern = pattern.replace(re.escape(b"\n"), rb"\r?\n")
        longest += separator.count(b"\n")
    sought = re.compile(pattern)
    at = max(0, file_range.start - longest)  # where reading begins in the file
    if at:
        stream.seek(at)
    inside = not file_range.start  # does the buffer begin with a document of this range?
    buffer, searched, dropped, separators = bytearray(), 0, 0, 0
    while True:
        found = sought.search(buffer, searched)
        if found is None:
            searched = max(0, len(buffer) - longest + 1)
            if not inside and at + dropped + searched >= file_range.end:
                return  # a document that begins from here on belongs to a later range
            chunk = stream.read(_CHUNK)
            if not chunk:
                break
            # Before a document, and beyond its limit, only the bytes that may begin a separator are kept.
            if not inside or len(buffer) > limit + longest:
                dropped += searched
                del buffer[:searched]
                searched = 0
            buffer += chunk
            continue
        begin, end, separators = found.start(), found.end(), separators + 1
        if inside:
            yield from _part(at, bytes(buffer[:begin]), dropped, limit, file, tally)
        del buffer[:end]
        at, searched, dropped = at + dropped + end, 0, 0
        inside = at >= file_range.start  # a document that begins before the range belongs to an earlier one
        if at >= file_range.end and file_range.end < file.bytes:
            return
    if inside:
        if not separators and not file_range.start:
            tally.add("noted.no_separator", file.bytes, file.relative)
        yield from _part(at, bytes(buffer), dropped, limit, file, tally)


def _part(
    at: int, raw: bytes, dropped: int, limit: int, file: InputFile, tally: Tally
) -> Iterator[tuple[int, bytes]]:
    if len(raw) + dropped > limit:
        tally.add("removed.too_long_document", len(raw) + dropped, f"{file.relative}, byte {at}")
    else:
        yield at, raw


def _lengths(stream: IO[bytes], most: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, at most `most` characters), cut after the last end of a line, if there is one."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    waiting, offset, ended = "", 0, False
    while not ended:
        chunk = stream.read(_CHUNK)
        ended = not chunk
        waiting += decoder.decode(chunk, ended)
        start = 0
        while len(waiting) - start > most or (ended and start < len(waiting)):
            end = min(start + most, len(waiting))
            if not (ended and end == len(waiting)):
                end = waiting.rfind("\n", start, end) + 1 or end
            raw = waiting[start:end].encode("utf-8", "surrogateescape")
            yield offset, raw
            offset, start = offset + len(raw), end
        waiting = waiting[start:]


def fasta(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each record, its lines joined: protein and genomic sequences.

    A long record is cut every `max_document_bytes`. What comes before the first ">" is left out and
    counted in the tally.
    """
    file, limit = file_range.file, recipe.max_document_bytes
    stream, _ = open_text(file.path, recipe)
    with stream:
        at = line_after(stream, file_range.start, file_range.end) if file_range.start else 0
        name, size, part, middle = "", 0, 0, False
        lines: list[bytes] = []

        def emit() -> Iterator[Document]:
            origin = origin_of(file, record=name, **({"part": part} if part else {}))
            text = decoded(b"".join(lines), recipe, tally, f"{file.relative}:{name}")
            if text is not None:
                yield Document(text, origin)

        # A record that begins after the range belongs to a later range.
        while name or at < file_range.end or file_range.end >= file.bytes:
            line = stream.readline(limit)  # a longer line comes in parts, as its record does
            offset, at, begins, middle = at, at + len(line), not middle, not line.endswith(b"\n")
            line = line if offset else line.removeprefix(BOM)
            if not line or (begins and line.startswith(b">")):
                if name and lines:
                    yield from emit()
                elif name and not part:
                    tally.add("removed.empty", 0, f"{file.relative}:{name}")
                if not line or (offset >= file_range.end and file_range.end < file.bytes):
                    return
                title = decoded(line[1:].strip(), recipe, tally, f"{file.relative}, byte {offset}")
                name, lines, size, part = title or "unnamed", [], 0, 0
                continue
            if not name:
                if file_range.start == 0 and line.strip():
                    tally.add("removed.before_first_record", len(line), file.relative)
                continue
            lines.append(line.strip())
            size += len(lines[-1])
            if size >= limit:
                tally.add("changed.cut_long_document", size, f"{file.relative}:{name}")
                yield from emit()
                lines, size, part = [], 0, part + 1
