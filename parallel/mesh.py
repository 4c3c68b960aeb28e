"""The device mesh of a layout: pp × dp_replicate × dp_shard × tp, a tp group's ranks side by side."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.plan import Layout


@dataclass(frozen=True)
class Axis:
    """This rank's place on one mesh axis. `group` is None where the axis has one rank: nothing to send."""

    rank: int
    size: int
    group: dist.ProcessGroup | None


@dataclass(frozen=True)
class Mesh:
    """This rank's place in the layout.

    replicate and shard are the data axes as ZeRO sees them: with zero=0 every data rank is a replica. Their
    flattened index, `data_rank`, does not depend on that. `data` is the mesh that FSDP takes, None where FSDP
    has nothing to do.
    """

    pp: Axis
    replicate: Axis
    shard: Axis
    tp: Axis
    data: DeviceMesh | None

    @property
    def data_rank(self) -> int:
        return self.replicate.rank * self.shard.size + self.shard.rank

    @property
    def data_ranks(self) -> int:
        return self.replicate.size * self.shard.size

    @property
    def axes(self) -> dict[str, str]:
        """Process group name → the axis it belongs to."""
        named = {"pp": self.pp, "dp_replicate": self.replicate, "dp_shard": self.shard, "tp": self.tp}
        return {axis.group.group_name: name for name, axis in named.items() if axis.group is not None}


_ALONE = Axis(0, 1, None)


def make_mesh(layout: Layout, device: torch.device, *, fsdp: bool) -> Mesh:
    """Groups for every axis of the layout. Collective.

    fsdp: it is wanted, be it over a single data rank for its mixed precision. A single
    process gets a group of one only then.
    """
    if layout.world == 1 and not fsdp:
        return Mesh(_ALONE, _ALONE, _ALONE, _ALONE, None)
    if not dist.is_initialized():
        assert layout.world == 1, "several ranks need parallel.runtime.start() first"
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    shard = 1 if layout.zero == 0 else layout.dp_shard
    replicate = layout.dp // shard
    names = ("pp", "dp_replicate", "dp_shard", "tp")
    mesh = init_device_mesh(device.type, (layout.pp, replicate, shard, layout.tp), mesh_dim_names=names)

    def axis(name: str) -> Axis:
        one = mesh[name]
        return Axis(one.get_local_rank(), one.size(), one.get_group() if one.size() > 1 else None)

    data = None
    if fsdp:
        data = mesh["dp_replicate", "dp_shard"] if replicate > 1 else mesh["dp_shard"]
    return Mesh(axis("pp"), axis("dp_replicate"), axis("dp_shard"), axis("tp"), data)


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
