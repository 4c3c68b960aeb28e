"""What the ranks of large layouts own and send, each rank built without the others."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fake_world import apart, fake_world
from parallel.messages.comms import CommCounter, Traffic
from runs import Case, build, micro_batches

MODEL = {"layers": 4, "hidden": 64, "heads": 8, "kv_heads": 8, "ffn_hidden": 128}


def owned_by_each(
    case: Case, world: int
) -> list[list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]:
    """Rank → (name, shape of the tensor, offset, shape of the piece) of each piece that the rank saves."""
    found = []
    for rank in range(world):
        with fake_world(rank, world):
            engine = build(case, rank, world)
            found.append(
                [
                    (chunk.name, chunk.shape, chunk.offset, tuple(chunk.tensor.shape))
                    for chunk in engine.chunks()
                    if chunk.owned and chunk.name.startswith("model.")
                ]
            )
            engine.close()
    return found


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (32, {"tp": 4, "pp": 2, "dp_shard": 4, "zero": 1}),
        (32, {"tp": 2, "dp_replicate": 4, "dp_shard": 4, "zero": 3}),
        (32, {"tp": 2, "pp": 2, "cp": 2, "dp_shard": 4, "zero": 0}),
        pytest.param(256, {"tp": 8, "pp": 4, "dp_shard": 8, "zero": 3}, marks=pytest.mark.slow),
        pytest.param(
            256, {"tp": 8, "cp": 2, "dp_replicate": 4, "dp_shard": 4, "zero": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_every_element_has_one_owner_and_owners_have_like_shares(
    world: int, parallel: dict[str, Any]
) -> None:
    case = Case(parallel=parallel, model=MODEL, global_batch=world)
    owners: dict[str, Any] = {}
    loads = []
    for pieces in apart(owned_by_each, case, world):
        loads.append(sum(int(np.prod(size)) for _, _, _, size in pieces))
        for name, shape, offset, size in pieces:
            count = owners.setdefault(name, np.zeros(shape, dtype=np.int16))
            count[tuple(slice(start, start + length) for start, length in zip(offset, size))] += 1
    assert len(owners) > 30 and all((count == 1).all() for count in owners.values())
    if parallel.get("pp", 1) == 1:  # stages differ by the embedding and the head
        largest = max(count.size for count in owners.values())
        assert max(loads) <= 2 * sum(loads) / world + largest / world


def sent(case: Case, worlds: list[int]) -> list[dict[tuple[str, str], Traffic]]:
    """World → what its last rank sends in a step. Without pp, whose stages tell one another their shapes."""
    found = []
    for world in worlds:
        with fake_world(world - 1, world):
            engine = build(replace(case, global_batch=world), world - 1, world)
            batches = micro_batches(
                replace(case, global_batch=4 * engine.data_ranks), 0, 0, engine.data_ranks
            )
            with CommCounter(engine.axes) as counter:
                engine.step(batches, lr=1e-3)
            found.append(dict(counter.traffic))
            engine.close()
    return found


@pytest.mark.parametrize("zero", [0, 3])
def test_messages_of_a_rank_do_not_grow_with_the_world(zero: int) -> None:
    case = Case(parallel={"tp": 2, "cp": 2, "zero": zero}, model=MODEL)
    small, large = apart(sent, case, [32, 2048])
    calls: dict[str, list[int]] = defaultdict(list)
    for found in (small, large):
        for axis in ("cp", "tp", "dp_shard" if zero else "dp_replicate", "world"):
            calls[axis].append(sum(one.calls for (name, _), one in found.items() if name == axis))
    assert all(few == many > 0 for few, many in calls.values()), calls
    for axis in ("cp", "tp"):
        bytes_sent = [
            sum(one.sent_bytes for (name, _), one in found.items() if name == axis)
            for found in (small, large)
        ]
        # The last of many shards is empty, so a sum over tp of its parts is as well.
        assert bytes_sent[0] >= bytes_sent[1] > 0.99 * bytes_sent[0]
