"""How often something is tried, and how long the pauses are."""

import time

import pytest

from common.retry import attempts


def test_pauses_lie_between_attempts_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert list(attempts(4, 0.25)) == [0, 1, 2, 3]
    assert pauses == [0.25, 0.5, 1.0]
    pauses.clear()
    assert list(attempts(3, 1.0, 5.0)) == [0, 1, 2]
    assert pauses == [1.0, 5.0]


def test_a_success_ends_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for attempt in attempts(5, 1.0):
        if attempt == 1:
            break
    assert pauses == [1.0]
