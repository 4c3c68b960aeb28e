"""The pool that the distributed tests stand on: right answers, one clear failure, a fresh start."""

import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ranks import RankContext, RankFailure, RankPools


def summed(context: RankContext, scale: float) -> tuple[float, int]:
    value = torch.tensor([scale * context.rank])
    dist.all_reduce(value)
    return value.item(), os.getpid()


def fails_on_one(context: RankContext, culprit: int) -> None:
    if context.rank == culprit:
        raise ValueError("sequence 7 is not there")
    dist.barrier()


def dies(context: RankContext) -> None:
    if context.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def hangs(context: RankContext) -> None:
    if context.rank == 1:
        time.sleep(60)


def meshed(context: RankContext) -> int:
    mesh = init_device_mesh("cpu", (context.world // 2, 2), mesh_dim_names=("dp", "tp"))
    value = torch.ones(1)
    dist.all_reduce(value, group=mesh["tp"].get_group())
    assert value.item() == 2.0
    return len(dist.distributed_c10d._world.pg_map)


def drawn(context: RankContext) -> float:
    return torch.rand(()).item()


def test_every_rank_answers_and_the_processes_are_kept(ranks: RankPools) -> None:
    first, second = ranks(2).run(summed, 2.0), ranks(2).run(summed, 3.0)
    assert [value for value, _ in first] == [2.0, 2.0]
    assert [value for value, _ in second] == [3.0, 3.0]
    assert [pid for _, pid in first] == [pid for _, pid in second]


def test_an_exception_names_its_rank_and_the_next_call_works(ranks: RankPools) -> None:
    with pytest.raises(
        RankFailure, match=r"(?s)rank 1 of 2 failed in fails_on_one.*sequence 7 is not"
    ) as caught:
        ranks(2).run(fails_on_one, 1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert ranks(2).run(summed, 1.0)[0][0] == 1.0


def test_a_killed_rank_is_a_failure(ranks: RankPools) -> None:
    with pytest.raises(RankFailure, match="rank 0 of 2 failed in dies"):
        ranks(2).run(dies)


def test_a_hang_ends_with_the_stack_of_the_rank_that_hangs(ranks: RankPools) -> None:
    for seconds in (1.0, 5.0, 25.0):  # where the cores are shared by others, rank 0 may need longer to answer
        ranks(2).run(summed, 1.0)  # what is timed below is an answer, not a fresh process's imports
        with pytest.raises(RankFailure, match=r"(?s)ranks \[.*1\] hang in hangs") as caught:
            ranks(2).run(hangs, timeout_seconds=seconds)
        if "ranks [1]" in str(caught.value):
            break
    assert re.search(r"(?s)ranks \[1\] hang in hangs.*in hangs", str(caught.value))
    assert ranks(2).run(summed, 1.0)[0][0] == 1.0


def test_groups_do_not_pile_up(ranks: RankPools) -> None:
    counts = [ranks(4).run(meshed)[0] for _ in range(3)]
    assert counts[0] == counts[1] == counts[2]


def test_each_call_starts_from_the_same_seed(ranks: RankPools) -> None:
    assert ranks(2).run(drawn) == ranks(2).run(drawn)
