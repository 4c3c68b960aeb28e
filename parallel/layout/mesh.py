"""The device mesh of a layout: pp × dp_replicate × dp_shard × cp × tp, a tp group's ranks side by side."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout.layout import Layout


@dataclass(frozen=True)
class Axis:
    """This rank's place on one mesh axis. `group` is None where the axis has one rank: nothing to send."""

    rank: int
    size: int
    group: dist.ProcessGroup | None


@dataclass(frozen=True)
class Mesh:
    """This rank's place in the layout.

    replicate and shard are the data axes as ZeRO sees them: with zero=0 every data rank is a replica. Both
    count the ranks of cp, which hold different tokens just as data ranks do. `data` is the mesh that FSDP
    takes, None where FSDP has nothing to do: see `rows` for shards without it.
    """

    pp: Axis
    replicate: Axis
    shard: Axis
    tp: Axis
    cp: Axis
    data: DeviceMesh | None

    @property
    def data_rank(self) -> int:
        return (self.replicate.rank * self.shard.size + self.shard.rank) // self.cp.size

    @property
    def data_ranks(self) -> int:
        return self.replicate.size * self.shard.size // self.cp.size

    @property
    def is_first_of_data_rank(self) -> bool:
        """Whether this is the first of the ranks that read the same rows: one of them in every data rank."""
        return self.pp.rank == self.tp.rank == self.cp.rank == 0

    @property
    def axes(self) -> dict[str, str]:
        """Process group name → the axis it belongs to."""
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
    """Groups for every axis of the layout. Collective.

    fsdp: whether FSDP is wanted, which over a single data rank it is for its mixed precision. A single
    process gets a group, of one, only then.
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
    if layout.cp > 1:  # the same ranks, cut along the last part of the data axes
        sizes = (layout.pp, layout.dp, layout.cp, layout.tp)
        context = _axis(init_device_mesh(device.type, sizes, mesh_dim_names=("pp", "dp", "cp", "tp"))["cp"])
    data = None
    if fsdp:
        data = mesh["dp_replicate", "dp_shard"] if replicate > 1 else mesh["dp_shard"]
    pp, outer, inner, tp = (_axis(mesh[name]) for name in names)
    return Mesh(pp, outer, inner, tp, context, data)


def _axis(mesh: DeviceMesh) -> Axis:
    return Axis(mesh.get_local_rank(), mesh.size(), mesh.get_group() if mesh.size() > 1 else None)


def end_to_end_group(mesh: Mesh, first: int, last: int) -> dist.ProcessGroup | None:
    """The group of two that holds this rank's twin in the first and last pipeline rank, for tied embeddings.

    Collective over the world, because groups are made by all. None on the ranks of stages between.
    """
    assert mesh.pp.group is not None
    members = dist.get_process_group_ranks(mesh.pp.group)
    pairs: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(pairs, [members[first], members[last]])
    group, _ = dist.new_subgroups_by_enumeration(
        [list(pair) for pair in sorted({tuple(pair) for pair in pairs})]
    )
    return group if mesh.pp.rank in (first, last) else None
