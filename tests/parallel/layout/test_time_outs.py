"""One time-out for every process group, whoever makes it."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.layout.mesh import end_to_end_group, make_mesh
from parallel.world.runtime import every_group_waits
from ranks import RankContext, RankPools

SECONDS = 123


def of_all_groups(context: RankContext, deepspeed: bool) -> dict[str, float]:
    before = distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout
    every_group_waits(timedelta(seconds=SECONDS))
    try:
        if deepspeed:
            from deepspeed_cases import deepspeed as case
            from deepspeed_cases import engine_of

            with engine_of(context, case({"zero": 1})):
                return _found()
        layout = resolve(ParallelConfig(dp_shard=1, tp=2, pp=2), context.world)
        make_mesh(layout, torch.device("cpu"), fsdp=True)
        end_to_end_group(layout, 0, 1)
        make_mesh(
            resolve(ParallelConfig(dp_replicate=2, cp=2), context.world), torch.device("cpu"), fsdp=True
        )
        return _found()
    finally:
        distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout = before


def _found() -> dict[str, float]:
    """Name of each group but the world's, which says its time-out itself → its time-out."""
    groups: list[Any] = [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]
    cpu = torch.device("cpu")
    return {
        f"{group.group_name} {group.group_desc}": group._get_backend(cpu).options._timeout.total_seconds()
        for group in groups
    }


def test_the_groups_of_meshes_and_of_tied_ends(ranks: RankPools) -> None:
    for found in ranks(4).run(of_all_groups, False):
        assert len(found) >= 5 and set(found.values()) == {SECONDS}, found


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_groups_that_name_no_time_out_have_the_configs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives NCCL's groups a default of their own, of ten minutes; a CPU cannot make such a group."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))  # put back at the end
    every_group_waits(timedelta(seconds=SECONDS))
    assert distributed_c10d._get_default_timeout(dist.Backend(backend)) == timedelta(seconds=SECONDS)


def test_the_groups_of_deepspeed(ranks: RankPools) -> None:
    for found in ranks(2).run(of_all_groups, True):
        assert found and set(found.values()) == {SECONDS}, found
