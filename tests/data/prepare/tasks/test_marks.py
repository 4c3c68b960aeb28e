"""Marks of characters become marks of tokens."""

import numpy as np

from data.prepare.document import Mark
from data.prepare.tasks.marks import marks_of

PLACES = np.array([[0, 3], [3, 7], [7, 8], [8, 12]])


def test_a_token_has_the_mark_of_a_stretch_that_it_shares_a_character_with() -> None:
    assert marks_of(PLACES, [Mark(4, 8, each=1)]).tolist() == [0, 1, 1, 0]
    assert marks_of(PLACES, [Mark(2, 4, each=1)]).tolist() == [1, 1, 0, 0]
    assert marks_of(PLACES, [Mark(12, 20, each=1)]).tolist() == [0, 0, 0, 0]


def test_first_and_last_token() -> None:
    assert marks_of(PLACES, [Mark(0, 12, each=1), Mark(4, 12, first=2, last=3)]).tolist() == [1, 2, 1, 3]
    assert marks_of(PLACES, [Mark(0, 12, each=1), Mark(4, 6, first=2, last=3)]).tolist() == [1, 4, 1, 1]
    assert marks_of(PLACES, [Mark(0, 3, first=9), Mark(3, 8, first=5)]).tolist() == [9, 5, 0, 0]


def test_no_tokens() -> None:
    assert marks_of(np.zeros((0, 2), np.int64), [Mark(0, 3, each=1)]).tolist() == []
