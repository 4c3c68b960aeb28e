"""One rank of a world of any size, without the others: torch's backend whose collectives send nothing."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from parallel.relied_on import borrow


@contextmanager
def fake_world(rank: int, world: int) -> Iterator[None]:
    """This process is `rank` of `world`. What a collective writes into its outputs is undefined."""
    store = borrow("torch", "torch.testing._internal.distributed.fake_pg", "FakeStore")
    dist.init_process_group("fake", store=store(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Return the function's result in a process of its own, which may join a world."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(function, args)
