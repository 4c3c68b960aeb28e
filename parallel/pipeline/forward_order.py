"""Forward through a pipeline without backward: who runs what when, with many micro-batches under way."""

from functools import cache
from heapq import heappop, heappush

from parallel.layout.layout import Layout

Slot = list[tuple[int, int] | None]
"""By pipeline rank: the stage that it runs and the number of the micro-batch, or None where it waits."""


@cache
def forward_order(layout: Layout, count: int) -> list[Slot]:
    """Slots of one stage's time each, the same on every rank: what runs in a slot was ready before it.

    A rank runs the furthest stage that it has an input for. So a micro-batch that has come round is not
    overtaken by those behind it, and no rank's inputs pile up.
    """
    ready: list[list[tuple[int, int]]] = [[] for _ in range(layout.pp)]
    ready[layout.pp_index_of(0)] = [(0, number) for number in range(count)]
    slots = []
    while any(ready):
        # By falling stage: a heap's first is the smallest.
        taken = [heappop(mine) if mine else None for mine in ready]
        slot: Slot = [None if one is None else (-one[0], one[1]) for one in taken]
        for one in slot:
            if one is not None and one[0] + 1 < layout.stages:
                heappush(ready[layout.pp_index_of(one[0] + 1)], (-one[0] - 1, one[1]))
        slots.append(slot)
    return slots
