"""Documents out of text files, lines of JSON and FASTA: streams of lines, of which a range can be read by
itself.
"""

import json
from collections.abc import Iterator
from typing import IO, Any

from data.document import Document, decode, from_record, origin_of
from data.recipe import Recipe
from data.streams import line_start, open_bytes, to_line_start
from data.tally import Tally
from data.units import Piece


def text_files(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file, limit = piece.file, recipe.max_document_bytes
    with open_bytes(file.path) as stream:
        if piece.start:
            to_line_start(stream, piece.start, limit)
        ranged = piece.end < file.bytes or piece.start > 0
        part = 0
        at = stream.tell() if ranged else 0
        end = line_start(file.path, piece.end, limit) if ranged and piece.end < file.bytes else -1
        while end < 0 or at < end:
            want = limit if end < 0 else min(limit, end - at)
            raw = stream.read(want)
            if not raw and (part or ranged):
                break
            if len(raw) == limit and at + want != end:
                raw += stream.readline(limit if end < 0 else min(limit, end - at - want))
                if not raw.endswith(b"\n"):
                    raw += _rest_of_character(stream, raw)
            more = len(raw) >= limit or part or ranged
            origin = origin_of(file, **({"offset": at} if more else {}))
            at += len(raw)
            part += 1
            if more:
                tally.add("changed.cut_long_document", len(raw), f"{file.relative}:{origin['offset']}")
            text = decode(raw, recipe, tally, file.relative)
            if text is not None:
                yield Document(text, origin)
            if not raw:
                break


def _rest_of_character(stream: IO[bytes], raw: bytes) -> bytes:
    """The bytes that are missing from the UTF-8 character that `raw` ends in the middle of."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return stream.read(length - back) if length > back else b""
        if byte < 0x80:
            break
    return b""


def jsonl(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    file = piece.file
    # The place of a line is its offset in the (decompressed) file, known without reading what comes before
    # it.
    with open_bytes(file.path) as stream:
        at = 0
        if piece.start:
            stream.seek(piece.start - 1)
            at = piece.start - 1 + len(stream.readline())
        whole_file = piece.end >= file.bytes
        while whole_file or at < piece.end:
            line = stream.readline()
            if not line:
                break
            offset, at = at, at + len(line)
            if line.isspace():
                continue
            document = _json_document(line, origin_of(file, offset=offset), recipe, tally)
            if document is not None:
                yield document


def _json_document(line: bytes, origin: dict[str, Any], recipe: Recipe, tally: Tally) -> Document | None:
    where = f"{origin['path']}:{origin.get('offset', '')}"
    try:
        record = json.loads(line.decode("utf-8", errors="surrogateescape"))
    except ValueError:
        tally.add("removed.not_json", len(line), where)
        return None
    if not isinstance(record, dict):
        tally.add("removed.not_a_json_object", len(line), where)
        return None
    return from_record(record, origin, recipe, tally)


def fasta(piece: Piece, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Protein and genomic sequences: a document a record, its lines joined; a long one is cut every
    `max_document_bytes`. What comes before the first ">" is counted."""
    file, limit = piece.file, recipe.max_document_bytes
    with open_bytes(file.path) as stream:
        at = 0
        if piece.start:
            stream.seek(piece.start - 1)
            at = piece.start - 1 + len(stream.readline())
        name, size, part = "", 0, 0
        lines: list[bytes] = []

        def emit() -> Document:
            origin = origin_of(file, record=name, **({"part": part} if part else {}))
            return Document(b"".join(lines).decode("ascii", "replace"), origin)

        while True:
            line = stream.readline()
            offset, at = at, at + len(line)
            if not line or line.startswith(b">"):
                if name and lines:
                    yield emit()
                elif name and not part:
                    tally.add("removed.empty", 0, f"{file.relative}:{name}")
                if not line or (offset >= piece.end and piece.end < file.bytes):
                    return
                name, lines, size, part = line[1:].strip().decode("utf-8", "replace") or "unnamed", [], 0, 0
                continue
            if not name:
                if piece.start == 0 and line.strip():
                    tally.add("removed.before_first_record", len(line), file.relative)
                continue
            lines.append(line.strip())
            size += len(lines[-1])
            if size >= limit:
                tally.add("changed.cut_long_document", size, f"{file.relative}:{name}")
                yield emit()
                lines, size, part = [], 0, part + 1
