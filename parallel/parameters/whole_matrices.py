"""Functions of whole matrices over sharded ones, for optimisers such as Muon; data ranks share the work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from parallel.layout.mesh import Mesh
from parallel.messages import collectives


@dataclass(frozen=True)
class WholeMatrices:
    """Matrices of one global `shape`, cut in one way: by tp along `tp_dim` (None: not), then by rows."""

    shape: tuple[int, ...]
    tp_dim: int | None
    mesh: Mesh

    def map(self, parts: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Apply `function` to each whole matrix; take and yield this rank's part of each.

        Collective. The data ranks divide the matrices among them; a rank computes with one at a time, and
        with the numbers that a single process would have.

        Sharded parts change hands by all-to-all: a rank sends its share of the bytes there and back, where
        an all-gather would send every matrix to every rank. Replicas have the matrices already and gather
        the results. A replica of shards (HSDP) repeats the other's work.
        """
        axis = self.mesh.shard if self.mesh.shard.group is not None else self.mesh.replicate
        rest = iter(parts)
        while group := list(islice(rest, axis.size)):
            if axis.group is None:
                yield self._cut_over_tp(function(self._gather_over_tp(group[0])))
            elif axis is self.mesh.shard:
                yield from self._map_shards(group, function)
            else:
                yield from self._map_replicas(group, function)

    def _map_shards(self, parts: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """At most one matrix a rank of the shard axis."""
        axis = self.mesh.shard
        assert axis.group is not None
        rows = self.shape[0] // (self.mesh.tp.size if self.tp_dim == 0 else 1)
        even = parts[0].new_zeros((axis.size, -(-rows // axis.size), *parts[0].shape[1:]))
        for slot, part in zip(even, parts):
            slot[: part.shape[0]] = part
        mine = collectives.all_to_all(even, axis.group).flatten(0, 1)
        if axis.rank < len(parts):
            mine[:rows] = self._cut_over_tp(function(self._gather_over_tp(mine[:rows])))
        back = collectives.all_to_all(mine.view_as(even), axis.group)
        return [slot[: part.shape[0]] for slot, part in zip(back, parts)]

    def _map_replicas(self, parts: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """At most one matrix a replica."""
        axis = self.mesh.replicate
        assert axis.group is not None
        mine = torch.zeros_like(parts[0])
        if axis.rank < len(parts):
            mine = self._cut_over_tp(function(self._gather_over_tp(parts[axis.rank])))
        whole = collectives.gather(mine[None], 0, axis.group)
        return list(whole.unbind()[: len(parts)])

    def _gather_over_tp(self, part: Tensor) -> Tensor:
        if self.mesh.tp.group is None or self.tp_dim is None:
            return part
        return collectives.gather(part.contiguous(), self.tp_dim, self.mesh.tp.group)

    def _cut_over_tp(self, whole: Tensor) -> Tensor:
        if self.tp_dim is None:
            return whole
        size = whole.shape[self.tp_dim] // self.mesh.tp.size
        return whole.narrow(self.tp_dim, size * self.mesh.tp.rank, size)
