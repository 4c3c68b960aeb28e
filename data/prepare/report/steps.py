"""The steps that a corpus's tally counts, in words."""

import re
from collections.abc import Sequence

from data.opening import open_bytes
from data.prepare.report.tally import Tally
from data.prepare.units import Unit

_LINE = re.compile(r"(.*), line (\d+) after byte (\d+)(.*)", re.DOTALL)
_CHUNK = 1 << 20

_WORDS = {
    "removed.binary": "left out: binary, no text",
    "removed.utf16_without_mark": "left out: looks like UTF-16 without a byte order mark (--encoding utf-16)",
    "removed.undecodable": "left out: not in the encoding (--encoding)",
    "removed.not_json": "left out: not JSON",
    "removed.not_a_json_object": "left out: JSON, but no object with fields",
    "removed.nested_too_deeply": "left out: damaged, nested too deeply",
    "removed.too_long_document": "left out: longer than --max-document-bytes",
    "removed.too_many_columns": "left out: a row of more columns than the header has",
    "removed.ids_not_integers": "left out: ids that are no integers",
    "removed.no_text_in_sample": "left out: no text in the sample",
    "removed.before_first_record": "left out: before the first record",
    "removed.empty": "left out: nothing in it",
    "removed.too_short": "left out: shorter than --min-characters",
    "removed.too_long": "left out: longer than --max-characters",
    "removed.licence.not_stated": "left out: no licence stated",
    "removed.licence.not_allowed": "left out: another licence",
    "removed.contaminated": "left out: shares text with an evaluation file",
    "removed.duplicate": "left out: an exact copy",
    "removed.near_duplicate": "left out: nearly a copy",
    "changed.not_utf8": "changed: not UTF-8, so read as Windows-1252",
    "changed.broken_utf8": "changed: broken UTF-8, whose unreadable bytes became U+FFFD",
    "changed.not_unicode": "changed: what Unicode text cannot hold became U+FFFD",
    "changed.encoding_fixed": "changed: wrong decoding mended",
    "changed.normal_form": "changed: brought to the normal form",
    "changed.c4_lines": "changed: lines taken out by C4's rules",
    "changed.scrubbed": "changed: scrubbed",
    "changed.cut_long_document": "changed: a long sequence cut at --max-document-bytes",
    "changed.padding_taken_off": "changed: padding of a row of ids taken off",
    "changed.separator_taken_off": "changed: the separator at the end of a row of ids taken off",
    "noted.json_as_text": "read as text: a .json file that holds no rows",
    "noted.text_like_json_lines": "read as text, though it looks like lines of JSON (--format jsonl)",
    "noted.no_separator": "read as one document: --split-at never occurs in the file",
    "noted.ids_of_no_text": "taken as they are: ids that stand for no text by this tokenizer",
    "noted.separator_in_ids": "taken as they are: ids with the separator in the middle of a row",
}
_LEFT_OUT = {
    "removed.gopher_quality.": "left out by Gopher's quality rules: ",
    "removed.gopher_repetition.": "left out by Gopher's repetition rules: ",
    "removed.c4.": "left out by C4's rules: ",
    "removed.language.": "left out: language ",
}


def in_words(step: str, text_field: str) -> str:
    """ "removed.empty" → "left out: nothing in it"."""
    if step == "removed.no_text_field":
        return f"left out: no text in the field {text_field!r}"
    for prefix, words in _LEFT_OUT.items():
        if step.startswith(prefix):
            return words + step.removeprefix(prefix).replace("_", " ")
    return _WORDS.get(step, step.replace(".", ": ").replace("_", " "))


def count_lines(tally: Tally, units: Sequence[Unit]) -> None:
    """Makes the line of a file out of the line of a piece, in the few examples that a tally keeps. A file on
    a server would be fetched again for it, and of two files of one name nobody knows which it was.
    """
    pieces: dict[tuple[str, int], list[str]] = {}
    for piece in (piece for unit in units for piece in unit.pieces if piece.start):
        pieces.setdefault((piece.file.relative, piece.start), []).append(piece.file.path)
    for examples in tally.examples.values():
        for place, example in enumerate(examples):
            found = _LINE.fullmatch(example)
            paths = pieces.get((found[1], int(found[3])), []) if found else []
            if found and len(paths) == 1 and "://" not in paths[0]:
                line = _line_of(paths[0], int(found[3])) + int(found[2])
                examples[place] = f"{found[1]}, line {line}{found[4]}"


def _line_of(path: str, offset: int) -> int:
    """How many lines begin before the first that begins at `offset` or later."""
    with open_bytes(path) as stream:
        left, lines = offset - 1, 1
        while left and (chunk := stream.read(min(left, _CHUNK))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
        return lines
