"""The process groups of a layout: one for each axis that has more than one rank.

The axes are pp × dp_replicate × dp_shard × cp × tp, from the outermost to the innermost, so the ranks of a tp
group are neighbours. `Layout` computes which rank is where. The 16 ranks of pp 2 × dp_shard 2 × cp 2 × tp 2:

                          pp 0              pp 1
                      tp 0   tp 1       tp 0   tp 1
    dp 0   cp 0         0      1          8      9
           cp 1         2      3         10     11       the sequences of cp 0, other tokens
    dp 1   cp 0         4      5         12     13
           cp 1         6      7         14     15

    groups of rank 0:   tp {0, 1}   cp {0, 2}   pp {0, 8}   dp_shard {0, 2, 4, 6}, as ZeRO shards over cp too

All of them have the time-out of the world's group (`world.runtime.every_group_waits`).
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout.layout import Layout


@dataclass(frozen=True)
class Axis:
    """This rank on one mesh axis.

    rank: its index, 0 … size - 1.
    size: the number of ranks.
    group: None where the axis has one rank, and so nothing is sent.
    """

    rank: int
    size: int
    group: dist.ProcessGroup | None


@dataclass(frozen=True)
class Mesh:
    """This rank on all axes of a layout.

    pp, tp, cp: the axes of `Layout`.
    replicate, shard: the data axes as ZeRO uses them. With zero=0 every data rank is a replica. The ranks of
        cp are among them: they hold different tokens, as data ranks do.
    data: the mesh for FSDP; None where FSDP is not used (see `gradients.rows` for shards without FSDP).
    """

    pp: Axis
    replicate: Axis
    shard: Axis
    tp: Axis
    cp: Axis
    data: DeviceMesh | None

    @property
    def axes(self) -> dict[str, str]:
        """Name of a process group → the mesh axis that it belongs to."""
        named = {
            "pp": self.pp,
            "dp_replicate": self.replicate,
            "dp_shard": self.shard,
            "tp": self.tp,
            "cp": self.cp,
        }
        return {axis.group.group_name: name for name, axis in named.items() if axis.group is not None}


_ALONE = Axis(0, 1, None)


def make_mesh(layout: Layout, device: torch.device, *, fsdp: bool) -> Mesh:
    """Make the groups of every axis of the layout. Collective.

    fsdp: whether the model is wrapped with FSDP. That happens over a single data rank too, for FSDP's mixed
    precision; only then does a single process get a group, of one rank.
    """
    if layout.world == 1 and not fsdp:
        return Mesh(_ALONE, _ALONE, _ALONE, _ALONE, _ALONE, None)
    if not dist.is_initialized():
        assert layout.world == 1, "several ranks need parallel.world.runtime.start() first"
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    shard = 1 if layout.zero == 0 else layout.dp_shard * layout.cp
    replicate = layout.dp * layout.cp // shard
    names = ("pp", "dp_replicate", "dp_shard", "tp")
    mesh = init_device_mesh(device.type, (layout.pp, replicate, shard, layout.tp), mesh_dim_names=names)
    context = _ALONE
    if layout.cp > 1:  # the innermost part of the data axes
        sizes = (layout.pp, layout.dp, layout.cp, layout.tp)
        context = _axis(init_device_mesh(device.type, sizes, mesh_dim_names=("pp", "dp", "cp", "tp"))["cp"])
    data = None
    if fsdp:
        data = mesh["dp_replicate", "dp_shard"] if replicate > 1 else mesh["dp_shard"]
    pp, outer, inner, tp = (_axis(mesh[name]) for name in names)
    return Mesh(pp, outer, inner, tp, context, data)


def _axis(mesh: DeviceMesh) -> Axis:
    return Axis(mesh.get_local_rank(), mesh.size(), mesh.get_group() if mesh.size() > 1 else None)


def data_axis(layout: Layout, mesh: Mesh) -> Axis:
    """This rank among the data ranks alone, in the order in which they divide the global batch.

    Collective over the world where no axis of `mesh` is that: a group is made.
    """
    if layout.dp == 1:
        return _ALONE
    rank = layout.data_rank(dist.get_rank())
    for axis in (mesh.replicate, mesh.shard):
        if layout.cp == 1 and axis.size == layout.dp:
            return Axis(rank, layout.dp, axis.group)
    places = {rank: layout.place_of(rank) for rank in range(layout.world)}
    apart = sorted({(place.pp, place.cp, place.tp) for place in places.values()})
    group, _ = dist.new_subgroups_by_enumeration(
        [[rank for rank, place in places.items() if (place.pp, place.cp, place.tp) == one] for one in apart]
    )
    return Axis(rank, layout.dp, group)


def end_to_end_group(layout: Layout, first: int, last: int) -> dist.ProcessGroup | None:
    """The group of the two ranks that hold this rank's tied parameters: in pipeline ranks `first` and `last`.

    Collective over the world, because all ranks take part in making a group. None on the ranks of other
    pipeline ranks.
    """
    places = [layout.place_of(rank) for rank in range(layout.world)]
    group, _ = dist.new_subgroups_by_enumeration(
        [
            sorted(layout.rank_at(replace(place, pp=end)) for end in (first, last))
            for place in places
            if place.pp == 0
        ]
    )
    return group if places[dist.get_rank()].pp in (first, last) else None
