"""Sentences of files in columns: a word a line with its tags, a blank line behind each sentence, as those of
CoNLL-2003 (Tjong Kim Sang and De Meulder 2003, cs/0306050) and of Universal Dependencies (CoNLL-U).

    EU NNP B-NP B-ORG        # text = They buy
    rejects VBZ B-VP O       1<TAB>They<TAB>they<TAB>PRON<TAB>PRP<TAB>Case=Nom<TAB>2<TAB>nsubj<TAB>_<TAB>_
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data.opening import bounded_line, line_after
from data.prepare.document import Document
from data.prepare.readers.records import origin_of
from data.prepare.recipe import TASK_FIELDS, Recipe
from data.prepare.sources.decoding import decoded, open_text
from data.prepare.sources.looks import BOM, binary_format
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.tasks.tags import tagged, unknown
from data.prepare.units import FileRange

_SPACE = b" \t\r\n"
_DOCUMENT = b"-DOCSTART-"
_UNIVERSAL = 10  # columns of CoNLL-U: 1 the number of the word, 2 the word, 4 its part of speech
_NUMBER = re.compile(r"\d+(?:[-.]\d+)?")
_NO_TAG = -100


class Sentence(NamedTuple):
    """The words of a sentence, with a tag each; None for a word without.

    line: of the file, or of its part from byte `after` on, from 1: where the sentence begins.
    lines: of each word.
    """

    words: list[str]
    tags: list[str | None]
    offset: int
    line: int
    lines: list[int]


def columns(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each sentence.

    Raises RuntimeError, with the line, where a line has other columns than its sentence; ValueError for a tag
    that is not among those that the recipe names.
    """
    file = file_range.file
    for sentence in sentences(file_range, recipe, tally):
        for tag, line in zip(sentence.tags, sentence.lines):
            if tag is not None and tag not in recipe.tag_name:
                raise unknown(tag, recipe.tag_name, _where(file_range, line))
        document = tagged(
            sentence.words,
            [_NO_TAG if tag is None else tag for tag in sentence.tags],
            recipe.tag_name,
            origin_of(file, offset=sentence.offset),
            tally,
            _where(file_range, sentence.line),
        )
        if document is not None:
            yield document


def sentences(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Sentence]:
    """Yield the sentences of a range: those whose last blank line before them begins in it."""
    for offset, first, raws in _blocks(file_range, recipe, tally):
        text = decoded(b"\n".join(raws), recipe, tally, _where(file_range, first))
        if text is None:
            continue
        lines = [(first + place, line) for place, line in enumerate(text.split("\n"))]
        rows = _rows(lines, file_range)
        if rows:
            yield _sentence(rows, offset, first, file_range, recipe)


def _blocks(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[tuple[int, int, list[bytes]]]:
    """Yield (offset, number of the first line, lines without their ends) of what stands between blank lines.

    A line `-DOCSTART-` counts as a blank one. A block longer than `max_document_bytes` is left out, counted.
    """
    file, limit = file_range.file, recipe.max_document_bytes
    stream, head = open_text(file.path, recipe)
    with stream:
        if known := binary_format(head):
            raise ValueError(f"{file.path} holds no columns: by its first bytes it is {known}")
        at = line_after(stream, file_range.start, file_range.end) if file_range.start else 0
        inside, number, size = not file_range.start, 0, 0
        offset, first, lines = at, 1, list[bytes]()
        while True:
            raw, length = bounded_line(stream, limit)
            here, at, number = at, at + length, number + 1
            raw = raw if here else raw.removeprefix(BOM)
            if not length or not raw.strip(_SPACE) or raw.startswith(_DOCUMENT):
                if size > limit:
                    tally.add("removed.too_long_document", size, _where(file_range, first))
                elif lines:
                    yield offset, first, lines
                if not length or (here >= file_range.end and file_range.end < file.bytes):
                    return
                inside, size, lines = True, 0, []
            elif inside:
                if not size:
                    offset, first = here, number
                size += length
                if size > limit:
                    lines = []  # the block is counted where it ends
                else:
                    lines.append(raw.rstrip(_SPACE))


def _rows(lines: list[tuple[int, str]], file_range: FileRange) -> list[tuple[int, list[str]]]:
    """(line, columns) of each line but the comments, which begin with "#" before the first word.

    A word may begin so, too: it has as many columns as other lines. "# " at the beginning is a comment.
    """
    split = [(number, _split(line)) for number, line in lines]
    width = next((len(row) for (_, line), (_, row) in zip(lines, split) if not line.startswith("#")), 0)
    if not width and "\t" in lines[-1][1]:
        width = len(split[-1][1])
    begins = 0
    while begins < len(lines):
        text, row = lines[begins][1], split[begins][1]
        if not text.startswith("#") or (text[1:2] != " " and len(row) == width):
            break
        begins += 1
    for number, row in split[begins:]:
        if len(row) != width:
            raise RuntimeError(
                f"{_where(file_range, number, whole=True)}: has {_count(len(row))}, and the sentence has "
                f"{width}: mend the line, or put a blank line between sentences"
            )
    return split[begins:]


def _split(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]


def _sentence(
    rows: list[tuple[int, list[str]]], offset: int, first: int, file_range: FileRange, recipe: Recipe
) -> Sentence:
    width = len(rows[0][1])
    universal = width == _UNIVERSAL and rows[0][1][0].isascii() and rows[0][1][0][:1].isdecimal()
    if universal and (wrong := [number for number, row in rows if not _NUMBER.fullmatch(row[0])]):
        raise RuntimeError(
            f"{_where(file_range, wrong[0], whole=True)}: does not begin with the number of a word, as the "
            "lines of CoNLL-U do"
        )
    usual = TASK_FIELDS["tags"]
    word_column = _column(recipe.text_field, usual["text_field"], 2 if universal else 1)
    tag_column = _column(recipe.label_field, usual["label_field"], 4 if universal else -1)
    for option, column in (("--text-field", word_column), ("--label-field", tag_column)):
        if not (1 <= column <= width or -width <= column <= -1):
            raise ValueError(
                f"{_where(file_range, rows[0][0], whole=True)}: has {_count(width)}, and {option} is {column}"
            )
    word_at, tag_at = (column - (column > 0) for column in (word_column, tag_column))
    if word_at % width == tag_at % width:
        raise ValueError(
            f"{_where(file_range, rows[0][0], whole=True)}: has {_count(width)}, and --task tags reads a "
            "word and its tag: give their columns with --text-field and --label-field, or leave the file out "
            "with --exclude"
        )
    # Of CoNLL-U: 3-4 is how the words 3 and 4 are written together, 5.1 is a word that is not written.
    words = [(n, row) for n, row in rows if not universal or row[0].isdecimal()]
    tags = [None if universal and row[tag_at] == "_" else row[tag_at] for _, row in words]
    return Sentence([row[word_at] for _, row in words], tags, offset, first, [number for number, _ in words])


def _column(name: str, usual: str, chosen: int) -> int:
    """The number of a column: 1 is the first, -1 the last."""
    if name == usual:
        return chosen
    try:
        return int(name)
    except ValueError:
        raise ValueError(
            f"column {name!r}: columns of words and tags have numbers: give 1 for the first, -1 for the last"
        ) from None


def _count(columns: int) -> str:
    return f"{columns} column{'s' * (columns != 1)}"


def _where(file_range: FileRange, line: int, *, whole: bool = False) -> str:
    file: InputFile = file_range.file
    behind = f" after byte {file_range.start}" if file_range.start else ""
    return f"{file.path if whole else file.relative}, line {line}{behind}"
