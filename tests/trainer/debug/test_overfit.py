"""Overfitting one batch: the verdict and its rule."""

import math
from pathlib import Path

import numpy as np
import pytest
from debugged import looked_into, opened

from data.stream.rows import SequenceRows
from trainer.debug.overfit import NEAR_ZERO, Verdict, least_loss, still_falling


def test_one_batch_is_learnt_by_heart(trained: Path) -> None:
    with opened(trained, ("optim.lr=1e-2", "train.global_batch=2", "model.layers=1"), step=0) as run:
        well, lines = looked_into(run, overfits=True, steps=300)
    assert well, lines
    assert lines[-1].startswith("overfit: yes: the loss fell from 5.6")


def test_a_batch_that_is_not_learnt_is_no(trained: Path) -> None:
    with opened(trained, ("optim.lr=1e-9",)) as run:
        well, lines = looked_into(run, overfits=True, steps=2)
    assert not well and lines[-1].startswith("overfit: NO: the loss fell from ")


@pytest.mark.parametrize(("last", "learnt"), [(0.29, True), (0.31, False), (math.nan, False)])
def test_the_rule_is_near_the_least_possible_loss(last: float, learnt: bool) -> None:
    assert NEAR_ZERO == 0.1
    assert Verdict(10, 6.0, last, 0.2, 100).learnt is learnt


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([6.0 - 0.1 * step for step in range(40)], True),
        ([6.0 * 0.99**step for step in range(40)], True),
        ([6.0] * 20 + [3.0, 3.001] * 10, False),  # it fell once
        ([3.0] * 30 + [3.0 + 0.1 * step for step in range(10)], False),
        ([3.0], False),
        ([3.0, 2.0], True),
        ([math.nan] * 8, False),
    ],
)
def test_more_steps_are_the_first_advice_where_the_loss_still_falls(losses, falls: bool) -> None:
    assert still_falling(losses, 0.2) is falls
    said = str(Verdict(40, losses[0], losses[-1], 0.2, 40, still_falling(losses, 0.2)))
    assert ("least possible): more --steps are needed" in said) is falls
    assert "forward, backward or update is wrong" in said


def rows(tokens: list[list[int]], documents: list[list[int]] | None = None) -> SequenceRows:
    ids = np.array(tokens, dtype=np.int64)
    return SequenceRows(
        numbers=np.arange(len(ids)),
        length=np.full(len(ids), ids.shape[1] - 1),
        tokens=ids[:, :-1],
        following=ids[:, 1:],
        positions=None if documents is None else np.zeros_like(ids[:, :-1]),
        documents=None if documents is None else np.array(documents),
    )


def test_equal_beginnings_that_go_on_differently_cannot_be_told_apart() -> None:
    assert least_loss(rows([[1, 2, 3], [4, 5, 6]])) == 0.0
    # After 1 come 2 and 3, half of the time each; after 1 2 and 1 3 all is known.
    assert least_loss(rows([[1, 2, 3], [1, 3, 3]])) == pytest.approx(2 * math.log(2) / 4)
    # Under a document mask the second document of a row begins anew.
    assert least_loss(rows([[1, 2, 1, 3, 1]], [[0, 0, 1, 1]])) == pytest.approx(2 * math.log(2) / 4)
    assert least_loss(rows([[1, 2, 1, 3, 1]])) == 0.0
