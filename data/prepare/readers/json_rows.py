"""Documents of lines of JSON, of which a range can be read by itself, and of JSON arrays, element by element.

A row longer than `Recipe.row_bytes` is not held in memory, and a row nested deeper than `MOST_DEPTH` is not
parsed: both are counted with their line, and the rows after them are read.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from data.opening import bounded_line, line_after
from data.prepare.document import Document
from data.prepare.readers import squad
from data.prepare.readers.json_elements import elements, is_too_deep
from data.prepare.readers.records import from_record, origin_of, too_long, whole
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decoded, open_text
from data.prepare.sources.looks import BOM, binary_format, json_shape, squad_array
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange


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
    """Yield a document for each element. A file that turns out to hold lines of JSON is read as `lines`; one
    that has SQuAD's articles, with `--task answers`, question by question.
    """
    file = file_range.file
    stream, head = open_text(file.path, recipe)
    if recipe.task == "answers" and squad_array(head.removeprefix(BOM)):
        stream.close()
        yield from squad.articles(file_range, recipe, tally)
        return
    with stream:
        shape = json_shape(stream, recipe.text_field, recipe.row_bytes)
    if shape == "lines":
        yield from lines(file_range, recipe, tally)
        return
    if shape == "text":
        remedy = "leave it out with --exclude"
        if not recipe.task:
            remedy = f"give --format text to read it as text, or {remedy}"
        elif recipe.task == "answers":
            remedy = f'give SQuAD\'s {{"data": [{{"paragraphs": …}}]}}, or {remedy}'
        raise ValueError(
            f"{file.path} is neither an array of JSON objects or texts nor lines of JSON: {remedy}"
        )
    stream, _ = open_text(file.path, recipe)
    with stream:
        for number, (element, size, line) in enumerate(elements(stream, recipe.row_bytes)):
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
