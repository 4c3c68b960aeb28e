"""Ranks connect to those they send to, not to all: gloo's groups of many processes."""

import multiprocessing
import tempfile
from typing import Any

import psutil
import pytest

from ranks import PRELOAD


def count_connections(rank: int, world: int, folder: str, answers: Any) -> None:
    """Sum over the world and over half of it, and gather; answer with the number of open connections."""
    import torch
    import torch.distributed as dist

    from parallel.world.environment import connect_when_needed, use_interface

    use_interface("lo")
    connect_when_needed()
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world
    )
    half = dist.new_group(
        [one for one in range(world) if one % 2 == rank % 2], use_local_synchronization=True
    )
    total, part, gathered = torch.ones(4096), torch.ones(3), [torch.zeros(1) for _ in range(world)]
    dist.all_reduce(total)
    dist.all_reduce(part, group=half)
    dist.all_gather(gathered, torch.ones(1) * rank)
    assert (
        total[0] == world and part[0] == world // 2 and [int(one) for one in gathered] == list(range(world))
    )
    open_now = [one for one in psutil.Process().net_connections("tcp") if one.status == "ESTABLISHED"]
    answers.put(len(open_now))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [16, pytest.param(128, marks=pytest.mark.slow)])
def test_connections_of_a_rank_do_not_grow_with_the_world(world: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=count_connections, args=(rank, world, folder, answers))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        found = [answers.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
    assert all(process.exitcode == 0 for process in processes)
    # Two neighbours in each ring, and a tree for the barrier; all connected would be 1.5 · (world - 1).
    assert max(found) <= 2 * world.bit_length() + 4, found
