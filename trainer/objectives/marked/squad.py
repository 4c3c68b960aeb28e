"""Answers compared as texts, as SQuAD's own evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250, and
2018, arXiv:1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(answer: str) -> list[str]:
    """Return the words of an answer in lower case, without punctuation and articles."""
    return _ARTICLE.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def compared(found: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return (exact match, F1) of an answer against the nearest of the right ones.

    found: "" for no answer.
    answers: none where the question has no answer; those without a word do not count.
    """
    mine = words(found)
    right = [other for answer in answers if (other := words(answer))] or [[]]
    return max(float(mine == other) for other in right), max(_f1(mine, other) for other in right)


def _f1(one: list[str], other: list[str]) -> float:
    if not one or not other:
        return float(one == other)
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared / (len(one) + len(other))
