"""A document with marks → what a corpus keeps of it: ids, and behind them the mark of each.

A question with a long context may become several documents, whose parts of the context overlap (windows;
Devlin et al. 2018, appendix A.5 of their code's `doc_stride`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.corpus.columns import MARKED
from data.corpus.questions import ANSWERS, CONTEXT_TEXT, PLACES, WINDOW
from data.prepare.document import Document
from data.prepare.recipe import Recipe
from data.prepare.tally import Tally
from data.prepare.tasks.answers import CONTEXT, FIRST, LAST, ONLY
from data.prepare.tasks.marks import marks_of, missed
from data.tokenizer.encoder import Encoder


class Row(NamedTuple):
    """One document of the corpus.

    ids: token ids, and as many marks behind them, int64 [2 · tokens].
    origin: what the corpus keeps beside it.
    """

    ids: NDArray[np.integer]
    origin: dict[str, Any]


def rows_of(document: Document, encode: Encoder, recipe: Recipe, tally: Tally) -> Iterator[Row]:
    """Yield what a corpus keeps of a document with marks: one row, or one for each window of its context.

    A separator stands between two texts. The marks are of the last of them.
    """
    marks = document.marks
    assert marks is not None
    marked = document.text if document.second is None else document.second
    ids, places = encode.placed(marked, special=not marks.template)
    before = encode.before if marks.template else []
    if document.second is not None:
        before = [*before, *encode.placed(document.text)[0].tolist(), encode.separator]
    behind = encode.behind if marks.template else []
    asked = marks_of(places, marks.stretches)
    if ANSWERS not in document.origin and (words := missed(places, marks.stretches)):
        tally.add("noted.words_without_token", 0, document.where, documents=words)
    room = recipe.window_tokens - 1 - len(before) - len(behind)  # a row begins with a separator
    overlap = min(recipe.window_overlap, room // 2)
    for number, (first, end) in enumerate(_windows(len(ids), room, overlap)):
        origin = dict(document.origin)
        here = asked[first:end]
        if ANSWERS in origin:
            # Every token of the context, those without a character of their own too: PLACES has each.
            here = np.maximum(_whole_answer(here), CONTEXT)
            origin |= _places(marked, places[first:end]) | {WINDOW: number}
        every = np.concatenate((before, ids[first:end], behind)).astype(np.int64)
        of_every = np.zeros_like(every)
        of_every[len(before) : len(before) + len(here)] = here
        origin[MARKED] = len(every)
        yield Row(np.concatenate((every, of_every)), origin)


def _windows(tokens: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of each window of `tokens`, each of at most `room`; all in one where there is room
    for none.
    """
    if tokens <= room or room < 1:
        yield 0, tokens
        return
    for first in range(0, tokens - overlap, room - overlap):
        yield first, min(first + room, tokens)


def _whole_answer(marks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The marks of a part of a context, in which an answer that is not wholly there is none."""
    begins, ends = np.isin(marks, (FIRST, ONLY)).any(), np.isin(marks, (LAST, ONLY)).any()
    return marks if begins and ends else np.minimum(marks, CONTEXT)


def _places(text: str, places: NDArray[np.int64]) -> dict[str, Any]:
    """The text of these tokens, and of each its first character in it and the one behind it."""
    begin, end = (int(places[:, 0].min()), int(places[:, 1].max())) if len(places) else (0, 0)
    return {CONTEXT_TEXT: text[begin:end], PLACES: (places - begin).ravel().tolist()}
