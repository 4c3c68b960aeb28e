"""Questions of a file as SQuAD has them (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822):

    {"version": "v2.0", "data": [{"title": …, "paragraphs": [{"context": …, "qas": [
        {"id": …, "question": …, "answers": [{"text": …, "answer_start": …}], "is_impossible": …}]}]}]}

One article is held at a time.
"""

import json
from collections.abc import Iterator
from typing import IO, Any

from data.prepare.document import Document
from data.prepare.readers.json_elements import elements, is_too_deep
from data.prepare.readers.records import from_record, origin_of, whole
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decoded, open_text
from data.prepare.sources.looks import BOM, SQUAD_END, squad_array
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.tasks.answers import answered
from data.prepare.units import FileRange

_HEAD = 1 << 16


def articles(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each question. An article without paragraphs is a row, as in a flat file.

    Raises EOFError or OSError, with the line, where the file is damaged or cut short.
    """
    file, number = file_range.file, 0
    stream, _ = open_text(file.path, recipe)
    with stream:
        for place, (raw, size, line) in enumerate(_articles(stream, recipe.row_bytes)):
            where = f"{file.relative}, line {line} (article {place})"
            if size > len(raw):
                tally.add("removed.too_long_document", size, where)
                continue
            if is_too_deep(raw):
                tally.add("removed.nested_too_deeply", size, where)
                continue
            if (text := decoded(raw, recipe, tally, where)) is None:
                continue
            article = _parsed(text, line)
            if isinstance(article, dict) and "paragraphs" not in article:
                found = from_record(article, file, where, recipe, tally, row=number)
                number += 1
                if found is not None:
                    yield found
                continue
            for context, question, at in _questions(article):
                here = f"{file.relative}, line {line} (article {place}, {at})"
                document = _document(context, question, file, number, tally, here)
                number += 1
                if document is not None:
                    yield document


def _articles(stream: IO[bytes], limit: int) -> Iterator[tuple[bytes, int, int]]:
    head = stream.read(_HEAD).removeprefix(BOM)
    begins = squad_array(head)
    line = 1 + head[:begins].count(b"\n")
    yield from elements(stream, limit, head=head[begins:], line=line, end=SQUAD_END)


def _parsed(text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise OSError(
            f"line {line + error.lineno - 1}, column {error.colno}: {error.msg.removesuffix(' at')}"
        ) from None
    except ValueError as error:  # an integer of too many digits
        raise OSError(f"line {line}: {error}") from None


def _questions(article: Any) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Yield (context, question, where that is) of an article; what is none of its parts is an empty one."""
    for number, paragraph in enumerate(_list(article, "paragraphs")):
        context = paragraph.get("context") if isinstance(paragraph, dict) else None
        for place, question in enumerate(_list(paragraph, "qas")):
            is_question = isinstance(question, dict)
            named = question.get("id", place) if is_question else place
            yield context, question if is_question else {}, f"paragraph {number}, question {named}"


def _list(parent: Any, name: str) -> list[Any]:
    """The list `name` of an object; where there is none, one of a part that is no object."""
    found = parent.get(name) if isinstance(parent, dict) else None
    return found if isinstance(found, list) else [None]


def _document(
    context: Any, question: dict[str, Any], file: InputFile, row: int, tally: Tally, where: str
) -> Document | None:
    """The document of a question. One that is said to have no answer has none, whatever is beside it."""
    answers = [] if question.get("is_impossible") is True else question.get("answers", [])
    origin = origin_of(file, row=row)
    if isinstance(question.get("id"), str):
        origin["key"] = whole(question["id"], tally, where)
    asked, context = (
        whole(text, tally, where) if isinstance(text, str) else None
        for text in (question.get("question"), context)
    )
    return answered(asked, context, answers, origin, tally, where)
