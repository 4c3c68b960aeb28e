"""Process groups, each made by its own ranks alone: a rank's work does not grow with the number of groups.

`torch.distributed.new_group` is called by every rank of the world for every group, and where NCCL's first
group is bound to a device each call splits the world's communicator: with 1,024 ranks and tp 8, 128 times for
the tp axis alone. A group in fact concerns its members, which find one another in the store by the group's
name. Torch names groups by a counter, so a rank adds the number of groups that others make to its counter.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel.layout.layout import Layout
from parallel.relied_on import insist


def make_group(layout: Layout, axes: Sequence[str], description: str) -> dist.ProcessGroup:
    """Make the group of the ranks that differ from this rank on `axes` alone. Collective over the world.

    layout: of the world's ranks.
    axes: names of fields of `Place`, such as ("dp_shard", "cp"). Those of all ranks are the world's group.
    description: the group's name in torch's flight recorder and in NCCL's log.
    """
    size = layout.size_of(axes)
    if size == layout.world and dist.group.WORLD is not None:
        return dist.group.WORLD
    number = layout.number_apart(dist.get_rank(), axes)
    return _make(layout.ranks_along(dist.get_rank(), axes), number, layout.world // size, description)


def make_pair(ranks: Sequence[int], number: int, pairs: int) -> dist.ProcessGroup | None:
    """Make the group of two ranks that hold the same tied parameters. Collective over the world.

    ranks: of this rank's pair; empty on a rank that is in no pair, which gets None.
    number: which of all pairs this rank's is.
    pairs: how many there are.
    """
    if ranks:
        return _make(ranks, number, pairs, "tied")
    _counter().group_count += pairs
    return None


def _make(ranks: Sequence[int], number: int, count: int, description: str) -> dist.ProcessGroup:
    """Make this rank's group, the `number`th of `count` that the world's ranks make at the same time."""
    counter = _counter()
    first = counter.group_count
    counter.group_count = first + number
    group = dist.new_group(list(ranks), group_desc=description)
    counter.group_count = first + count
    assert isinstance(group, dist.ProcessGroup), ranks
    if group.group_name != str(first + number):  # or ranks of different groups would meet in one
        raise ValueError(
            f"torch {torch.__version__} names a process group {group.group_name}, not {first + number} by "
            "the order in which groups are made: install a version that this project's pyproject.toml names"
        )
    return group


def _counter() -> Any:
    insist("torch", distributed_c10d, "_world")
    insist("torch", distributed_c10d._world, "group_count")
    return distributed_c10d._world
