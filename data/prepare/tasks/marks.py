"""Marks of characters → marks of token ids."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data.prepare.document import Mark


def missed(places: NDArray[np.int64], stretches: Iterable[Mark]) -> int:
    """Return how many stretches share no character with a token: the tokenizer drops what is there."""
    begins, ends = np.maximum.accumulate(places, axis=0).T if len(places) else (np.zeros(0), np.zeros(0))
    return sum(
        bool(
            np.searchsorted(ends, mark.begin, side="right") >= np.searchsorted(begins, mark.end, side="left")
        )
        for mark in stretches
    )


def marks_of(places: NDArray[np.int64], stretches: Iterable[Mark]) -> NDArray[np.int64]:
    """Return the mark of each token, int64 [tokens]. A token is of a stretch if they share a character.

    places: first character of each token and the one behind it, in order, int64 [tokens, 2].
    """
    marks = np.zeros(len(places), dtype=np.int64)
    begins, ends = np.maximum.accumulate(places, axis=0).T if len(places) else (marks, marks)
    for mark in stretches:
        first = int(np.searchsorted(ends, mark.begin, side="right"))
        last = int(np.searchsorted(begins, mark.end, side="left")) - 1
        if last < first:
            continue
        if mark.each:
            marks[first : last + 1] = mark.each
        if mark.first:
            marks[first] = mark.first
        if mark.last:
            marks[last] = mark.last if last > first or not mark.first else mark.first + mark.last - 1
    return marks
