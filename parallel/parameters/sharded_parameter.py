"""A parameter as one rank holds it: which part of the global tensor, in which memory."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from parallel.engine import Chunk
from parallel.layout.cuts import shard_rows
from parallel.layout.mesh import Mesh


@dataclass(eq=False)
class ShardedParameter:
    """One parameter as this rank holds it.

    name: the canonical name, the same on every layout; a tied parameter has one name for all its copies.
    module_parameter: the parameter of the module; autograd leaves the gradient there.
    tensor: this rank's part, float32; the optimiser updates this memory. Where nothing is sharded it is
        `module_parameter` itself.
    shape: of the global tensor.
    offset: of `tensor` in the global tensor, an index for each dim.
    tp_dim: the dim that tp shards; None where every tp rank holds the whole and a partial gradient.
    tied: another stage has a copy too.
    duplicate: this is the copy that is neither counted in the gradient norm nor saved.
    by_fsdp: `module_parameter` is a DTensor of FSDP's, and `tensor` aliases its memory.
    trained: whether it has a gradient and optimiser state; else it is frozen, and no checkpoint holds it.
    owned: this rank saves it; no rank saves a frozen one.
    cuts: as in `Chunk`.
    """

    name: str
    module_parameter: nn.Parameter
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    tp_dim: int | None
    tied: bool
    duplicate: bool
    by_fsdp: bool
    trained: bool = True
    owned: bool = False
    cuts: tuple[tuple[int, ...], ...] = ()

    @property
    def address(self) -> int:
        """The present address of the memory; FSDP may have replaced that of `tensor`."""
        return (local_of(self.module_parameter) if self.by_fsdp else self.tensor).data_ptr()

    def part_of(self, whole: Tensor) -> Tensor:
        """Cut this rank's part out of the whole tensor."""
        for dim, (start, length) in enumerate(zip(self.offset, self.tensor.shape)):
            whole = whole.narrow(dim, start, length)
        return whole

    def chunk(self, prefix: str, tensor: Tensor) -> Chunk:
        """A checkpoint chunk `PREFIX.NAME` of a tensor that is shaped and placed as `self.tensor` is."""
        return Chunk(f"{prefix}.{self.name}", tensor.detach(), self.shape, self.offset, self.owned, self.cuts)


def local_of(sharded: Tensor) -> Tensor:
    """The memory on this rank of a DTensor, a parameter or gradient of FSDP's: an alias, outside autograd."""
    with torch.no_grad():
        return cast(Any, sharded).to_local()


def make_sharded_parameter(
    name: str,
    parameter: nn.Parameter,
    shape: tuple[int, ...],
    tp_dim: int | None,
    mesh: Mesh,
    *,
    tied: bool = False,
    duplicate: bool = False,
    trained: bool = True,
) -> ShardedParameter:
    """This rank's part of a parameter: cut by tp along `tp_dim` first, then by ZeRO along dim 0.

    The rows of a parameter that ZeRO shards without FSDP (`gradients.rows`) get undefined memory here. That
    is ZeRO-1, which shards what belongs to updates: a frozen parameter stays whole there.

    name: canonical.
    parameter: the module's, already cut by tp and, if at all, by FSDP.
    shape: of the global tensor.
    tp_dim, tied, duplicate, trained: as in `ShardedParameter`.
    """
    offset, part = [0] * len(shape), list(shape)
    cuts = [[1] for _ in shape]
    if tp_dim is not None:
        part[tp_dim] //= mesh.tp.size
        offset[tp_dim] = part[tp_dim] * mesh.tp.rank
        cuts[tp_dim] = [mesh.tp.size]
    by_fsdp = mesh.data is not None
    if by_fsdp or trained:
        start, part[0] = shard_rows(part[0], mesh.shard.rank, mesh.shard.size)
        offset[0] += start
        cuts[0].append(mesh.shard.size)
    local: Tensor = parameter
    if by_fsdp:
        local = local_of(parameter)
    elif mesh.shard.group is not None and trained:
        local = parameter.new_empty(part)
    assert tuple(part) == tuple(local.shape), f"{name}: holds {tuple(local.shape)}, expected {tuple(part)}"
    return ShardedParameter(
        name,
        parameter,
        local,
        shape,
        tuple(offset),
        tp_dim,
        tied,
        duplicate,
        by_fsdp,
        trained,
        cuts=tuple(tuple(counts) for counts in cuts),
    )
