"""Which blocks each pipeline stage has, and which rows each rank's shard. Pure and torch-free."""

from collections.abc import Sequence
from itertools import pairwise


def cut_blocks(
    cut: str,
    costs: Sequence[float],
    stages: int,
    *,
    first: float = 0.0,
    last: float = 0.0,
    key: str = "blocks",
) -> list[range]:
    """Return the blocks of each stage, in order; ValueError where they cannot be cut so.

    cut: "even" (the blocks must divide), "cost" (the smallest possible largest stage, every stage at least
        one block), or the number of blocks of each stage, "3,5".
    costs: one for each block.
    stages: how many.
    first, last: what the first and last stage cost besides (embedding, head).
    key: the config key that says how many blocks there are, for messages.
    """
    blocks = len(costs)
    if stages == 1:  # as in `verify`'s one process, whatever the cut
        return [range(blocks)]
    if cut == "cost":
        return _cut_by_cost(costs, stages, first, last, key)
    if cut == "even":
        if blocks % stages:
            raise ValueError(
                f"{key}={blocks} is not divisible by {stages} pipeline stages: set parallel.cut "
                "to cost, or change parallel.pp"
            )
        counts = [blocks // stages] * stages
    else:
        counts = _counts(cut, blocks, stages, key)
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return [range(start, start + count) for start, count in zip(starts, counts)]


def _counts(cut: str, blocks: int, stages: int, key: str) -> list[int]:
    counts = [int(part) for part in cut.split(",")]
    if len(counts) != stages or sum(counts) != blocks:
        raise ValueError(
            f"parallel.cut={cut}: needs {stages} numbers that sum to {key}={blocks}, "
            f"and these {len(counts)} sum to {sum(counts)}"
        )
    return counts


def _cut_by_cost(costs: Sequence[float], stages: int, first: float, last: float, key: str) -> list[range]:
    """Contiguous partition with the smallest largest stage; among those, the smallest sum of squares."""
    blocks = len(costs)
    if stages > blocks:
        raise ValueError(f"{key}={blocks} cannot fill {stages} pipeline stages")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for stage in range(stages):
        extra = (first if stage == 0 else 0.0) + (last if stage == stages - 1 else 0.0)
        step: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for start, (largest, squares, bounds) in best.items():
            for end in range(start + 1, blocks - (stages - stage - 1) + 1):
                load = prefix[end] - prefix[start] + extra
                candidate = (max(largest, load), squares + load * load, (*bounds, end))
                if end not in step or candidate < step[end]:
                    step[end] = candidate
        best = step
    bounds = best[blocks][2]
    return [range(start, end) for start, end in pairwise(bounds)]


def shard_rows(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first row, number of rows) of a rank's shard, as torch.chunk and FSDP cut: the last gets fewer."""
    chunk = -(-rows // ranks)
    start = min(rank * chunk, rows)
    return start, min(chunk, rows - start)
