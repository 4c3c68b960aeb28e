"""Which blocks each pipeline stage gets. Pure and torch-free."""

from collections.abc import Sequence
from itertools import pairwise


def cut_blocks(
    cut: str, costs: Sequence[float], stages: int, first: float = 0.0, last: float = 0.0
) -> list[range]:
    """Blocks of each stage, in order.

    costs: one for each block; `first` and `last` are what the first and last stage carry besides
    (embedding, head).
    cut: "even" (ValueError unless the blocks divide), "cost" (the smallest possible largest stage, every
    stage at least one block), or the number of blocks of each stage, "3,5".
    """
    layers = len(costs)
    if stages == 1:  # as in `verify`'s one process, whatever the cut
        return [range(layers)]
    if cut == "cost":
        return _cut_by_cost(costs, stages, first, last)
    if cut == "even":
        if layers % stages:
            raise ValueError(
                f"model.layers={layers} is not divisible by {stages} pipeline stages: set parallel.cut "
                "to cost, or change parallel.pp"
            )
        counts = [layers // stages] * stages
    else:
        counts = _counts(cut, layers, stages)
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return [range(start, start + count) for start, count in zip(starts, counts)]


def _counts(cut: str, layers: int, stages: int) -> list[int]:
    counts = [int(part) for part in cut.split(",")]
    if len(counts) != stages or sum(counts) != layers:
        raise ValueError(
            f"parallel.cut={cut}: needs {stages} numbers that sum to model.layers={layers}, "
            f"and these {len(counts)} sum to {sum(counts)}"
        )
    return counts


def _cut_by_cost(costs: Sequence[float], stages: int, first: float, last: float) -> list[range]:
    """Contiguous partition with the smallest largest stage; among those, the smallest sum of squares."""
    layers = len(costs)
    if stages > layers:
        raise ValueError(f"model.layers={layers} cannot fill {stages} pipeline stages")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for stage in range(stages):
        extra = (first if stage == 0 else 0.0) + (last if stage == stages - 1 else 0.0)
        step: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for start, (largest, squares, bounds) in best.items():
            for end in range(start + 1, layers - (stages - stage - 1) + 1):
                load = prefix[end] - prefix[start] + extra
                candidate = (max(largest, load), squares + load * load, (*bounds, end))
                if end not in step or candidate < step[end]:
                    step[end] = candidate
        best = step
    bounds = best[layers][2]
    return [range(start, end) for start, end in pairwise(bounds)]


def shard_rows(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first row, number of rows) of a rank's shard, as torch.chunk and FSDP cut: the last gets fewer."""
    chunk = -(-rows // ranks)
    start = min(rank * chunk, rows)
    return start, min(chunk, rows - start)
