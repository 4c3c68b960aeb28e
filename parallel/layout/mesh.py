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

An axis of one rank has no group, and one of all ranks has the world's. The shards' group of a layout with cp
is another than cp's, even where both have the same ranks, unless these are the world: their messages
overlap, and the traffic of each is counted. All groups have the time-out of the world's
(`world.runtime.every_group_waits`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from parallel.layout.groups import make_group, make_pair
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
    inner = ("dp_shard", "cp") if layout.zero else ()
    outer = tuple(axis for axis in ("dp_replicate", "dp_shard", "cp") if axis not in inner)
    named = {"pp": ("pp",), "dp_replicate": outer, "dp_shard": inner, "tp": ("tp",)}
    pp, replicate, shard, tp = (_axis(layout, axes, name) for name, axes in named.items())
    context = _axis(layout, ("cp",), "cp")
    data = _for_fsdp(layout, replicate, shard, device) if fsdp else None
    return Mesh(pp, replicate, shard, tp, context, data)


def _axis(layout: Layout, axes: Sequence[str], name: str) -> Axis:
    """This rank on the axis that these fields of `Place` make together. Collective where it has a group."""
    size = layout.size_of(axes)
    if size == 1:
        return _ALONE
    group = make_group(layout, axes, name)
    return Axis(dist.get_group_rank(group, dist.get_rank()), size, group)


def _for_fsdp(layout: Layout, replicate: Axis, shard: Axis, device: torch.device) -> DeviceMesh:
    """The mesh of this rank's data ranks. An axis of one rank gets a group of its own."""
    shards = shard.group or make_group(layout, (), "alone")
    if replicate.group is None:
        return DeviceMesh.from_group(shards, device.type, mesh_dim_names=("dp_shard",))
    ranks = layout.ranks_along(dist.get_rank(), ("dp_replicate", "dp_shard", "cp"))
    return DeviceMesh.from_group(
        [replicate.group, shards],
        device.type,
        mesh=torch.tensor(ranks).view(replicate.size, shard.size),
        mesh_dim_names=("dp_replicate", "dp_shard"),
    )


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
    return _axis(layout, ("dp_replicate", "dp_shard"), "dp")


def end_to_end_group(layout: Layout, first: int, last: int) -> dist.ProcessGroup | None:
    """The group of the two ranks that hold this rank's tied parameters: in pipeline ranks `first` and `last`.

    Collective over the world. None on the ranks of other pipeline ranks.
    """
    rank = dist.get_rank()
    place = layout.place_of(rank)
    ranks = sorted(layout.rank_at(replace(place, pp=end)) for end in (first, last))
    return make_pair(
        ranks if rank in ranks else (), layout.number_apart(rank, ("pp",)), layout.world // layout.pp
    )
