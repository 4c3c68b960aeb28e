"""ZeRO-1 on a CPU without mixed precision: each data rank updates its rows of every parameter.

It replaces FSDP there. FSDP overlaps by CUDA streams, which a CPU does not have, and copies all gradients
into its messages and all parameters out of them. Here a rank sends nothing to itself, and two ranks send and
receive the rows of a large parameter without a copy.

    forward       gather the parameters, some ahead of the module that needs them
    backward      gradients of the micro-batches add up whole
    last backward send every rank its rows of the gradients; then drop the gathered parameters
    update        this rank's rows

Parameters are gathered only a few ahead: among more than two ranks, or for small parameters, messages are
copies, 2(n-1)/n of the bytes under way.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.gradients.replicas import BUCKET_BYTES, Arrivals, gradients, in_buckets, joined
from parallel.layout.cuts import shard_rows
from parallel.layout.mesh import Axis
from parallel.parameters.sharded_parameter import ShardedParameter
from parallel.parameters.towers import blocks_of, present

# Bytes of whole gradients, and of parameters, whose messages may be under way, besides one bucket.
IN_FLIGHT_BYTES = 4 * BUCKET_BYTES


class Bucket:
    """Parameters whose rows go in one message to each other rank.

    parameters: the module's, whole.
    shards: this rank's rows of each, side by side in one tensor, ready to be sent.
    own: the part of each parameter where this rank's rows are copied to.
    theirs: the parts where the other ranks' rows are received, rank by rank.
    nbytes: of the whole parameters.
    """

    def __init__(self, parameters: list[nn.Parameter], shards: list[Tensor], axis: Axis) -> None:
        self._axis = axis
        self.parameters = parameters
        self._flat = joined(shards)
        self._kept = self._flat.split([shard.numel() for shard in shards])
        self.shards = [part.view_as(shard) for part, shard in zip(self._kept, shards, strict=True)]
        self.nbytes = sum(parameter.nbytes for parameter in parameters)
        whole = [parameter.detach() for parameter in parameters]
        self.own = self.rows(whole, axis.rank)
        self.theirs = self.of_others(whole)
        self._mine = self._flat.numel()
        # Rank → number of elements in its rows; 0 for this rank, to which nothing is sent.
        self._widths = [sum(rows.numel() for rows in self.rows(whole, rank)) for rank in range(axis.size)]
        self._widths[axis.rank] = 0

    def rows(self, whole: Sequence[Tensor], rank: int) -> list[Tensor]:
        """A rank's rows of each tensor, flat."""
        found = []
        for tensor in whole:
            start, count = shard_rows(len(tensor), rank, self._axis.size)
            found.append(tensor[start : start + count].flatten())
        return found

    def of_others(self, whole: Sequence[Tensor]) -> list[Tensor]:
        ranks = [rank for rank in range(self._axis.size) if rank != self._axis.rank]
        return [rows for rank in ranks for rows in self.rows(whole, rank)]

    def scatter(self, grads: list[Tensor]) -> "Exchange":
        """Send each other rank its rows of `grads`, and receive this rank's rows from each."""
        sent = joined(self.of_others(grads))
        received = sent.new_empty((self._axis.size - 1) * self._mine)
        return self._start(sent, received, self._widths, self._from_each())

    def gather(self) -> "Exchange":
        """Send this rank's rows of the parameters to every other rank, and receive theirs."""
        sent = joined([self._flat] * (self._axis.size - 1))
        received = self.theirs[0]
        if len(self.theirs) > 1:
            received = sent.new_empty(sum(rows.numel() for rows in self.theirs))
        return self._start(sent, received, self._from_each(), self._widths)

    def add_up(self, received: Tensor, grads: Sequence[Tensor]) -> list[Tensor]:
        """This rank's rows, summed over ranks: the received ones in the order of ranks, then its own."""
        if self._mine and self._axis.size > 2:
            received = received.view(-1, self._mine).sum(dim=0)
        own = self.rows(grads, self._axis.rank)
        parts = received.split([rows.numel() for rows in own])
        torch._foreach_add_(parts, own)
        return [part.view_as(shard) for part, shard in zip(parts, self.shards, strict=True)]

    def take(self, received: Tensor) -> None:
        """Copy received and own rows into the parameters, which are whole then."""
        if len(self.theirs) > 1:
            torch._foreach_copy_(self.theirs, received.split([rows.numel() for rows in self.theirs]))
        torch._foreach_copy_(self.own, self._kept)

    def _from_each(self) -> list[int]:
        return [0 if rank == self._axis.rank else self._mine for rank in range(self._axis.size)]

    def _start(self, sent: Tensor, received: Tensor, send: list[int], receive: list[int]) -> "Exchange":
        work = dist.all_to_all_single(received, sent, receive, send, group=self._axis.group, async_op=True)
        return Exchange(self, sent, received, work)


@dataclass(frozen=True)
class Exchange:
    """A message of a bucket under way: flat, one rank's rows after another's."""

    bucket: Bucket
    sent: Tensor  # must not be freed meanwhile
    received: Tensor
    work: Any


class Rows:
    """`replicas.Reductions` over rows.

    Moves `ShardedParameter.tensor`, this rank's rows, into the buckets' memory. Parameters are whole from the
    first forward after an update until the last backward has ended; frozen ones are whole always.
    """

    adds_up = True

    def __init__(
        self, plan: ModelPlan, stages: Sequence[nn.Module], sharded: Sequence[ShardedParameter], axis: Axis
    ) -> None:
        sharded_of = {one.module_parameter: one for one in sharded if one.trained}
        groups = in_buckets(sharded_of)
        self._parameters = list(sharded_of)
        self._buckets = [Bucket(group, [sharded_of[one].tensor for one in group], axis) for group in groups]
        for bucket in self._buckets:
            for parameter, shard in zip(bucket.parameters, bucket.shards, strict=True):
                sharded_of[parameter].tensor = shard
        self._arrivals = Arrivals(groups[::-1], self._reduce)
        self._reducing: deque[Exchange] = deque()
        self._gathering: deque[Exchange] = deque()
        self._waiting: deque[Bucket] = deque()  # to be gathered after these
        self._gathered = True  # allocated whole, without values yet
        self.changed()
        for module in (unit for stage in stages for unit in _units(stage, plan)):
            held = set(module.parameters())
            needed = [bucket for bucket in self._buckets if not held.isdisjoint(bucket.parameters)]
            module.register_forward_pre_hook(partial(self._before_forward, needed))

    def before_backward(self, *, last: bool) -> None:
        self._arrivals.last = last

    def finish(self) -> None:
        self._arrivals.finish()
        while self._reducing:
            self._add_up(self._reducing.popleft())
        self.changed()

    def changed(self) -> None:
        """Drop gathered parameters."""
        if not self._gathered:
            return
        self._waiting.clear()
        while self._gathering:
            self._gathering.popleft().work.wait()
        for parameter in self._parameters:
            parameter.untyped_storage().resize_(0)
        self._gathered = False

    def _reduce(self, number: int) -> None:
        bucket = self._buckets[-1 - number]
        grads = gradients(bucket.parameters)
        for parameter, grad in zip(bucket.parameters, grads, strict=True):
            parameter.grad = grad
        self._reducing.append(bucket.scatter(grads))
        # One may always be under way: a parameter beyond the limit is not to be waited for at once.
        while len(self._reducing) > 1 and sum(one.bucket.nbytes for one in self._reducing) > IN_FLIGHT_BYTES:
            self._add_up(self._reducing.popleft())

    @torch.no_grad()
    def _add_up(self, exchange: Exchange) -> None:
        """Replace the bucket's whole gradients by this rank's rows of the sum."""
        bucket = exchange.bucket
        exchange.work.wait()
        shards = bucket.add_up(exchange.received, gradients(bucket.parameters))
        for parameter, shard, grad in zip(bucket.parameters, bucket.shards, shards, strict=True):
            parameter.grad, shard.grad = None, grad

    @torch.no_grad()
    def _before_forward(self, buckets: Sequence[Bucket], *_: Any) -> None:
        if not self._gathered:
            for parameter in self._parameters:
                parameter.untyped_storage().resize_(parameter.nbytes)
            self._waiting.extend(self._buckets)
            self._gathered = True
        for bucket in buckets:
            while bucket in self._waiting or any(one.bucket is bucket for one in self._gathering):
                self._gather_ahead()
                exchange = self._gathering.popleft()
                exchange.work.wait()
                exchange.bucket.take(exchange.received)
        self._gather_ahead()

    def _gather_ahead(self) -> None:
        """Start to gather the next buckets beside the computation: one, and more up to the limit."""
        ahead = sum(one.bucket.nbytes for one in self._gathering)
        while self._waiting and (not self._gathering or ahead + self._waiting[0].nbytes <= IN_FLIGHT_BYTES):
            bucket = self._waiting.popleft()
            self._gathering.append(bucket.gather())
            ahead += bucket.nbytes


def _units(stage: nn.Module, plan: ModelPlan) -> list[nn.Module]:
    """The modules whose parameters are waited for together: blocks, and the modules at the ends."""
    blocks = [block for of_tower in blocks_of(stage, plan) for block in of_tower.children()]
    units = [*blocks, *present(stage, (*plan.first, *plan.last))]
    held = {parameter for unit in units for parameter in unit.parameters()}
    assert held == set(stage.parameters()), "a parameter is in no block and at no end"
    return units
