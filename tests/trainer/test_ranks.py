"""What all ranks tell one another, and what that costs a rank of many."""

import pickle
from typing import Any

import pytest

from ranks import RankContext, RankPools
from trainer import ranks as module
from trainer.ranks import Ranks, decoded

VALUES: list[Any] = [None, "", {"a": [1, 2.5]}, "long " * 1000, (3, None), True, [], 7]


def told(context: RankContext) -> list[list[Any]]:
    ranks = Ranks(context.rank, context.world)
    return [ranks.gather(VALUES[(context.rank + shift) % len(VALUES)]) for shift in range(len(VALUES))]


def test_every_rank_has_the_values_of_all_in_order(ranks: RankPools) -> None:
    found = ranks(4).run(told)
    for shift in range(len(VALUES)):
        expected = [VALUES[(rank + shift) % len(VALUES)] for rank in range(4)]
        assert all(rank[shift] == expected for rank in found)


def heard(context: RankContext) -> list[Any]:
    rank, ranks = context.rank, Ranks(context.rank, context.world)
    return [
        *(ranks.tell(VALUES[(rank + shift) % len(VALUES)], 2) for shift in range(len(VALUES))),
        [ranks.first(value if rank in (1, 3) else None) for value in ("", [rank], 0)],
        [ranks.first(None), ranks.sum(10**rank)],
        [ranks.any(False), ranks.any(rank == 2), ranks.all(True), ranks.all(rank != 2)],
        ranks.each_once({"a": rank // 2}),
        ranks.by_rank_zero("x" * rank, lambda every: [[len(one), "y" * (9 - len(one))] for one in every]),
        ranks.on_rank_zero(lambda: {"by": rank}),
        ranks.together(lambda: rank),
    ]


def test_every_rank_hears_the_same(ranks: RankPools) -> None:
    for rank, found in enumerate(ranks(4).run(heard)):
        assert found[: len(VALUES)] == [VALUES[(2 + shift) % len(VALUES)] for shift in range(len(VALUES))]
        assert found[len(VALUES) :] == [
            [(1, ""), (1, [1]), (1, 0)],
            [None, 1111],
            [False, True, True, False],
            [{"a": 0}, {"a": 1}],
            [rank, "y" * (9 - rank)],
            {"by": 0},
            rank,
        ]


class Counted:
    """Wires that count what each rank of a world must read."""

    def __init__(self, world: int) -> None:
        self.world, self.values = world, 0

    def gather(self, value: Any) -> list[Any]:
        self.values += self.world
        return [value] * self.world

    def answer(self, value: Any, answers: Any) -> Any:
        self.values += 1
        return answers([value])[0]

    def tell(self, value: Any, rank: int) -> Any:
        self.values += 1
        return value

    def least(self, number: int) -> int:
        self.values += 1
        return number

    def sum(self, number: int) -> int:
        self.values += 1
        return number * self.world


def test_where_nothing_fails_a_rank_reads_as_much_in_any_world() -> None:
    read = []
    for world in (8, 16_384):
        wires = Counted(world)
        ranks = Ranks(0, world, wires)
        assert ranks.together(lambda: 5) == ranks.on_rank_zero(lambda: 5) == 5
        assert ranks.first(None) is None and ranks.any(False) is False and ranks.all(True)
        read.append(wires.values)
    assert read[0] == read[1] < 8


def test_like_values_are_decoded_once_and_what_can_change_is_each_ranks_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bytes] = []
    loads = pickle.loads
    monkeypatch.setattr(module.pickle, "loads", lambda data: (calls.append(data), loads(data))[1])
    assert (
        decoded([pickle.dumps(None)] * 10_000 + [pickle.dumps(("x", 1))] * 3)
        == [None] * 10_000 + [("x", 1)] * 3
    )
    assert len(calls) == 2
    one, other = decoded([pickle.dumps({"a": 1})] * 2)
    one["a"] = 2
    assert other == {"a": 1}
