"""What part of which global tensor a rank holds: under initialisation, clipping and checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from parallel.engine import Chunk
from parallel.layout.mesh import Mesh
from parallel.messages import collectives


@dataclass(eq=False)
class Piece:
    """One parameter as this rank holds it.

    name: canonical, the same on every layout. parameter: where autograd leaves the gradient. tensor: the
    memory itself, float32, the part at `offset` of the global `shape`; the optimiser works on it
    (`LocalParameter`). Where nothing is sharded the two are one, and gradients need not be fetched.
    tp_dim: the dimension tp shards, None where every tp rank has the whole and a partial gradient.
    twin: the copy of a tied parameter that belongs to another stage; it is neither counted nor saved.
    tied: a copy of it exists in another stage.
    """

    name: str
    parameter: nn.Parameter
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    tp_dim: int | None
    tied: bool
    twin: bool
    mesh: Mesh
    owned: bool = False

    @property
    def address(self) -> int:
        """Where the piece's memory lies now; FSDP may have replaced that of `tensor`."""
        return (local_of(self.parameter) if self.mesh.data is not None else self.tensor).data_ptr()

    def keep(self, whole: Tensor) -> Tensor:
        """This rank's part of the whole tensor."""
        for dim, (start, length) in enumerate(zip(self.offset, self.tensor.shape)):
            whole = whole.narrow(dim, start, length)
        return whole

    def spread(self, parts: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """`function` of whole matrices that are given and returned in parts, each of which lies as this piece
        does. The data ranks share the work: each computes its own, from the same numbers as one process
        would. Collective; one matrix a rank exists at a time.

        Sharded parts change hands by all-to-all, a rank's share of the bytes there and back, where `gather`
        would send every matrix to every rank. Replicas have the matrices already and gather the results. A
        replica of shards (HSDP) repeats the other's work.
        """
        axis = self.mesh.shard if self.mesh.shard.group is not None else self.mesh.replicate
        rest = iter(parts)
        while group := list(islice(rest, axis.size)):
            if axis.group is None:
                yield self._keep_over_tp(function(self._gather_over_tp(group[0])))
            elif axis is self.mesh.shard:
                yield from self._spread_shards(group, function)
            else:
                yield from self._spread_replicas(group, function)

    def _spread_shards(self, parts: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """At most one matrix a rank of the shard axis."""
        axis = self.mesh.shard
        assert axis.group is not None
        rows = self.shape[0] // (self.mesh.tp.size if self.tp_dim == 0 else 1)
        even = parts[0].new_zeros((axis.size, -(-rows // axis.size), *parts[0].shape[1:]))
        for slot, part in zip(even, parts):
            slot[: part.shape[0]] = part
        mine = collectives.all_to_all(even, axis.group).flatten(0, 1)
        if axis.rank < len(parts):
            mine[:rows] = self._keep_over_tp(function(self._gather_over_tp(mine[:rows])))
        back = collectives.all_to_all(mine.view_as(even), axis.group)
        return [slot[: part.shape[0]] for slot, part in zip(back, parts)]

    def _spread_replicas(self, parts: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """At most one matrix a replica."""
        axis = self.mesh.replicate
        assert axis.group is not None
        mine = torch.zeros_like(parts[0])
        if axis.rank < len(parts):
            mine = self._keep_over_tp(function(self._gather_over_tp(parts[axis.rank])))
        whole = collectives.gather(mine[None], 0, axis.group)
        return list(whole.unbind()[: len(parts)])

    def _gather_over_tp(self, part: Tensor) -> Tensor:
        if self.mesh.tp.group is None or self.tp_dim is None:
            return part
        return collectives.gather(part.contiguous(), self.tp_dim, self.mesh.tp.group)

    def _keep_over_tp(self, whole: Tensor) -> Tensor:
        if self.tp_dim is None:
            return whole
        size = whole.shape[self.tp_dim] // self.mesh.tp.size
        return whole.narrow(self.tp_dim, size * self.mesh.tp.rank, size)


def local_of(parameter: Tensor) -> Tensor:
    """The memory of a parameter on this rank: an alias, outside autograd."""
    with torch.no_grad():
        return parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()


def shard_rows(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """(first row, number of rows) of a rank under FSDP, as torch.chunk cuts: the last may get fewer."""
    chunk = -(-rows // ranks)
    start = min(rank * chunk, rows)
    return start, min(chunk, rows - start)


def make_piece(
    name: str,
    parameter: nn.Parameter,
    shape: tuple[int, ...],
    tp_dim: int | None,
    mesh: Mesh,
    *,
    tied: bool = False,
    twin: bool = False,
) -> Piece:
    """A piece of a parameter of global `shape`, cut first by tp along `tp_dim`, then by ZeRO along dim 0.

    Rows of a parameter that FSDP has not cut (`rows`) get memory here, as yet undefined.
    """
    offset, part = [0] * len(shape), list(shape)
    if tp_dim is not None:
        part[tp_dim] //= mesh.tp.size
        offset[tp_dim] = part[tp_dim] * mesh.tp.rank
    start, part[0] = shard_rows(part[0], mesh.shard.rank, mesh.shard.size)
    offset[0] += start
    local: Tensor = parameter
    if mesh.data is not None:
        local = local_of(parameter)
    elif mesh.shard.group is not None:
        local = parameter.new_empty(part)
    assert tuple(part) == tuple(local.shape), f"{name}: holds {tuple(local.shape)}, expected {tuple(part)}"
    return Piece(name, parameter, local, shape, tuple(offset), tp_dim, tied, twin, mesh)


def counted(piece: Piece, mesh: Mesh) -> bool:
    """Whether this rank is the one that adds the piece's gradient to the global norm."""
    return not piece.twin and mesh.replicate.rank == 0 and (piece.tp_dim is not None or mesh.tp.rank == 0)


def assign_owners(pieces: Iterable[Piece], mesh: Mesh) -> None:
    """Give every piece one owner among the ranks that hold the same bytes, spreading bytes evenly.

    Every rank of such a set works out the same answer on its own: the load depends on sizes alone.
    """
    loads = [[0] * mesh.replicate.size for _ in range(mesh.tp.size)]
    for piece in sorted(pieces, key=lambda piece: (-piece.tensor.numel(), piece.name)):
        if piece.twin:
            continue
        size = piece.tensor.numel()
        if piece.tp_dim is None:
            tp, replica = min(
                ((t, r) for t in range(mesh.tp.size) for r in range(mesh.replicate.size)),
                key=lambda at: (loads[at[0]][at[1]], at),
            )
            loads[tp][replica] += size
            piece.owned = (tp, replica) == (mesh.tp.rank, mesh.replicate.rank)
        else:  # tp ranks hold different bytes of the same size: one owner in each
            for tp, load in enumerate(loads):
                replica = load.index(min(load))
                load[replica] += size
                if tp == mesh.tp.rank:
                    piece.owned = replica == mesh.replicate.rank


def chunk(prefix: str, piece: Piece, tensor: Tensor) -> Chunk:
    """A checkpoint chunk of a tensor that is shaped and placed as the piece is."""
    return Chunk(f"{prefix}.{piece.name}", tensor.detach(), piece.shape, piece.offset, piece.owned)
