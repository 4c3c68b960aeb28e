"""The groups of layouts of up to 16,384 ranks, in a world without processes (torch's fake backend)."""

from collections import defaultdict
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from fake_world import apart, fake_world
from parallel.config import ParallelConfig
from parallel.layout.layout import Layout, resolve
from parallel.layout.mesh import data_axis, end_to_end_group, make_mesh

Found = dict[str, tuple[str, list[int]]]


def groups_of(layout: Layout, rank: int, *, fsdp: bool) -> tuple[Found, int]:
    """Axis → (name, ranks) of the group that a rank of this layout has; and how many groups the rank made."""
    made: list[Any] = []
    new_group = dist.new_group
    with fake_world(rank, layout.world), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            dist, "new_group", lambda *args, **named: made.append(args) or new_group(*args, **named)
        )
        mesh = make_mesh(layout, torch.device("cpu"), fsdp=fsdp)
        axes = {
            "pp": mesh.pp,
            "replicate": mesh.replicate,
            "shard": mesh.shard,
            "tp": mesh.tp,
            "cp": mesh.cp,
            "dp": data_axis(layout, mesh),
        }
        groups = {name: axis.group for name, axis in axes.items()}
        groups["tied"] = end_to_end_group(layout, 0, layout.pp - 1) if layout.pp > 1 else None
        found = {
            name: (group.group_name, dist.get_process_group_ranks(group))
            for name, group in groups.items()
            if group is not None
        }
    return found, len(made)


def every_rank(sizes: dict[str, int], world: int) -> list[tuple[Found, int]]:
    layout = resolve(ParallelConfig(**sizes), world)  # type: ignore[arg-type]
    return [groups_of(layout, rank, fsdp=True) for rank in range(world)]


def some_ranks(sizes: dict[str, int], world: int) -> list[tuple[Found, int]]:
    layout = resolve(ParallelConfig(**sizes), world)  # type: ignore[arg-type]
    return [groups_of(layout, rank, fsdp=True) for rank in (0, 1, world // 2, world - 1)]


@pytest.mark.parametrize(
    "sizes",
    [
        {"pp": 4, "tp": 2, "dp_shard": 8, "zero": 3},
        {"pp": 2, "tp": 2, "cp": 2, "dp_replicate": 2, "dp_shard": 4, "zero": 2},
        {"cp": 4, "dp_shard": 16, "zero": 1},
        {"pp": 2, "cp": 4, "dp_shard": 8, "zero": 0},
    ],
)
def test_members_name_a_group_alike_and_no_two_groups_have_a_name(sizes: dict[str, int]) -> None:
    ranks_of: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    named: dict[tuple[str, int], str] = {}
    for rank, (found, _) in enumerate(apart(every_rank, sizes, 64)):
        for axis, (name, ranks) in found.items():
            assert rank in ranks
            ranks_of[name].add(tuple(ranks))
            for member in ranks:
                assert named.setdefault((axis, member), name) == name
    assert all(len(groups) == 1 for groups in ranks_of.values())


@pytest.mark.parametrize("world", [64, 1024, 16384])
def test_a_rank_makes_as_many_groups_as_it_has_axes(world: int) -> None:
    sizes = {"pp": 2, "tp": 4, "cp": 2, "dp_replicate": 2, "dp_shard": world // 32, "zero": 3}
    for found, made in apart(some_ranks, sizes, world):
        assert set(found) - {"tied"} == {"pp", "replicate", "shard", "tp", "cp", "dp"}
        assert made == len(found)


def named_by_hash(sizes: dict[str, int], world: int) -> str:
    """What is said where a version of torch names groups in another way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed_c10d, "_process_group_name", lambda ranks, **_: f"hash of {ranks}")
        with fake_world(0, world), pytest.raises(ValueError) as raised:
            make_mesh(resolve(ParallelConfig(**sizes), world), torch.device("cpu"), fsdp=True)  # type: ignore[arg-type]
    return str(raised.value)


def test_a_torch_that_names_groups_otherwise_is_refused() -> None:
    said = apart(named_by_hash, {"tp": 2, "dp_shard": 4}, 8)
    assert f"torch {torch.__version__} names a process group" in said and "\n" not in said
