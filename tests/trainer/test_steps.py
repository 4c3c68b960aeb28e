"""What peers tell each other of damage, and when: never where there is none."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from checkpointed import ByGather, Team
from data.stream.batch import Batch
from data.stream.rows import NO_TOKEN
from trainer.ranks import BY_ANOTHER_RANK, ON_EVERY_RANK, Ranks
from trainer.steps import Steps

STEPS, ROWS, SEQ, EOS = 6, 2, 4, 0


def entry(number: int) -> dict[str, Any]:
    return {"sequence": number, "source": "s", "shard": "a.tar", "sample": f"x{number}", "offset": 512}


def batches(masked: dict[int, Any], damaged: Sequence[int]) -> Iterator[list[Batch]]:
    """As a loader does, which lists what is damaged when it has read it."""
    for step in range(STEPS):
        numbers = tuple(range(step * ROWS, (step + 1) * ROWS))
        tensors = {name: torch.ones(ROWS, SEQ, dtype=torch.int64) for name in ("tokens", "following")}
        batch = Batch(tensors, numbers)
        for number in set(numbers) & set(damaged):
            masked[number] = [entry(number)]
            batch = batch.masked([number], eos=EOS)
        yield [batch]


@pytest.mark.parametrize(("damaged", "exchanges"), [({}, 1), ({1: [7]}, 2), ({0: [7], 1: [0, 7, 11]}, 3)])
def test_peers_agree_and_speak_only_of_damage(damaged: dict[int, list[int]], exchanges: int) -> None:
    team, spoken = Team(2), [0, 0]
    asked = [[False, False] for _ in range(STEPS)]
    barrier = threading.Barrier(2, timeout=20)

    def rank(number: int) -> tuple[list[list[int]], dict[int, Any]]:
        collect, masked = team.gather(number), dict[int, Any]()

        def gather(value: Any) -> list[Any]:
            spoken[number] += 1
            told = collect(value)
            if not isinstance(value, dict):
                return told
            return [{int(key): item for key, item in each.items()} for each in told]

        steps = Steps(
            batches(masked, damaged.get(number, ())),
            quarantined=masked,
            ranks=Ranks(number, 2, ByGather(gather)),
            masks_alike=True,
            eos=EOS,
        )
        seen = []
        for step, (batch,) in enumerate(steps):
            counted = batch.tensors["following"][:, 0] != NO_TOKEN
            assert torch.equal(batch.tensors["tokens"][:, 0] != EOS, counted)
            seen.append(counted.tolist())
            asked[step][number] = steps.needs_exchange  # what the engine's reduction carries
            barrier.wait()
            steps.exchange_next(any(asked[step]))
        return seen, masked

    first, second = team.run(rank)
    all_damaged = {number for numbers in damaged.values() for number in numbers}
    expected = [[step * ROWS + row not in all_damaged for row in range(ROWS)] for step in range(STEPS)]
    assert first[0] == second[0] == expected
    assert first[1] == second[1] and set(first[1]) == all_damaged
    for number in all_damaged:
        (found,) = first[1][number]
        assert found["ranks"] == [rank for rank, numbers in damaged.items() if number in numbers]
    with_damage = len({number // ROWS for number in all_damaged})
    # Whether there are failures, and damage; of the first step, and of each with damage, then which.
    assert spoken == [2 * exchanges + with_damage] * 2


def test_alone_nothing_is_read_ahead() -> None:
    read = []

    def reading() -> Iterator[list[Batch]]:
        for number in range(3):
            read.append(number)
            yield []

    steps = Steps(reading())
    assert next(steps) == [] and read == [0] and not steps.needs_exchange


@pytest.mark.parametrize("failing", [(0, 1, 2), (1, 2), (2,)])
def test_an_error_belongs_to_its_step_on_every_rank_and_one_tells_it(failing: tuple[int, ...]) -> None:
    team = Team(3)

    def reading(number: int) -> Iterator[list[Batch]]:
        yield []
        if number in failing:
            raise RuntimeError("a shard is gone")
        yield []

    def rank(number: int) -> None:
        steps = Steps(reading(number), ranks=team.ranks(number))
        assert next(steps) == []
        steps.exchange_next(any(team.gather(number)(steps.needs_exchange)))
        next(steps)

    errors = team.run(rank)
    assert all(isinstance(error, RuntimeError) and "a shard is gone" in str(error) for error in errors)
    notes = [getattr(error, "__notes__", [None])[0] for error in errors]
    everywhere = [ON_EVERY_RANK] * 3
    assert notes == (
        everywhere if 0 in failing else [None if n == failing[0] else BY_ANOTHER_RANK for n in range(3)]
    )
