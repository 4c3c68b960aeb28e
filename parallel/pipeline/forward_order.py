"""Forward through a pipeline without backward: which rank runs which stage when."""

from functools import cache
from heapq import heappop, heappush

from parallel.layout.layout import Layout

Slot = list[tuple[int, int] | None]
"""By pipeline rank: the stage that it runs and the number of the micro-batch, or None where it waits."""


@cache
def forward_order(layout: Layout, count: int) -> list[Slot]:
    """Slots, each of one stage's time, the same on every rank. The inputs of a slot are ready before it.

    A rank runs the last of its stages that has an input. So later micro-batches do not overtake one that has
    come back to this rank, and inputs do not pile up on a rank.

    count: number of micro-batches.
    """
    ready: list[list[tuple[int, int]]] = [[] for _ in range(layout.pp)]
    ready[layout.pp_index_of(0)] = [(0, number) for number in range(count)]
    slots = []
    while any(ready):
        # Stages are negative in the heap, whose first element is the smallest.
        taken = [heappop(mine) if mine else None for mine in ready]
        slot: Slot = [None if one is None else (-one[0], one[1]) for one in taken]
        for one in slot:
            if one is not None and one[0] + 1 < layout.stages:
                heappush(ready[layout.pp_index_of(one[0] + 1)], (-one[0] - 1, one[1]))
        slots.append(slot)
    return slots
