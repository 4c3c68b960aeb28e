"""The process groups of a mesh are where the layout's arithmetic says, on every rank."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.layout.mesh import end_to_end_group, make_mesh


def test_places_and_ranks_are_inverse() -> None:
    layout = resolve(ParallelConfig(pp=2, dp_replicate=3, dp_shard=2, cp=2, tp=5), 120)
    places = [layout.place_of(rank) for rank in range(120)]
    assert len(set(places)) == 120 and [layout.rank_at(place) for place in places] == list(range(120))
    assert sorted(
        layout.data_rank(rank) for rank in range(120) if layout.is_first_of_data_rank(rank)
    ) == list(range(6))


def axes(context: Any, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Axis → (this rank's index in the mesh, in the layout's arithmetic)."""
    layout = resolve(ParallelConfig(**sizes), context.world)  # type: ignore[arg-type]
    mesh, place = make_mesh(layout, torch.device("cpu"), fsdp=False), layout.place_of(context.rank)
    data = mesh.replicate.rank * mesh.shard.size + mesh.shard.rank
    return {
        "pp": (mesh.pp.rank, place.pp),
        "tp": (mesh.tp.rank, place.tp),
        "cp": (mesh.cp.rank, place.cp),
        "data": (data, layout.data_rank(context.rank) * layout.cp + place.cp),
    }


@pytest.mark.parametrize(
    ("world", "sizes"),
    [
        (4, {"pp": 2, "tp": 2}),
        (4, {"dp_shard": 2, "cp": 2}),
        (4, {"dp_replicate": 2, "dp_shard": 2, "zero": 0}),
        (8, {"pp": 2, "dp_replicate": 2, "dp_shard": 2, "zero": 2}),
        (8, {"dp_shard": 2, "cp": 2, "tp": 2}),
    ],
)
def test_a_mesh_has_every_rank_at_its_place(ranks: Any, world: int, sizes: dict[str, int]) -> None:
    for rank, found in enumerate(ranks(world).run(axes, sizes)):
        for axis, (in_mesh, in_layout) in found.items():
            assert in_mesh == in_layout, (rank, axis)


def ends(context: Any) -> list[int] | None:
    layout = resolve(ParallelConfig(pp=4, tp=2), context.world)
    group = end_to_end_group(layout, 0, 3)
    return None if group is None else dist.get_process_group_ranks(group)


def test_the_ends_of_a_pipeline_are_paired(ranks: Any) -> None:
    assert ranks(8).run(ends) == [[0, 6], [1, 7], None, None, None, None, [0, 6], [1, 7]]
