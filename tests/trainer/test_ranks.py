"""What all ranks tell one another, and what that costs a rank of many."""

import pickle
from typing import Any

import pytest

from ranks import RankContext, RankPools
from trainer import ranks as module
from trainer.ranks import decoded, gather

VALUES: list[Any] = [None, "", {"a": [1, 2.5]}, "long " * 1000, (3, None), True, [], 7]


def told(context: RankContext) -> list[list[Any]]:
    return [gather(VALUES[(context.rank + shift) % len(VALUES)]) for shift in range(len(VALUES))]


def test_every_rank_has_the_values_of_all_in_order(ranks: RankPools) -> None:
    found = ranks(4).run(told)
    for shift in range(len(VALUES)):
        expected = [VALUES[(rank + shift) % len(VALUES)] for rank in range(4)]
        assert all(rank[shift] == expected for rank in found)


def test_like_values_are_decoded_once_and_what_can_change_is_each_ranks_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bytes] = []
    loads = pickle.loads
    monkeypatch.setattr(module.pickle, "loads", lambda data: (calls.append(data), loads(data))[1])
    assert decoded([pickle.dumps(None)] * 10_000 + [pickle.dumps("x")] * 3) == [None] * 10_000 + ["x"] * 3
    assert len(calls) == 2
    one, other = decoded([pickle.dumps({"a": 1})] * 2)
    one["a"] = 2
    assert other == {"a": 1}
