"""ZeRO-1 where parameters are computed with as they are held: each data rank updates its rows of them.

FSDP overlaps by streams, which a CPU has not, and copies all gradients into what it sends and all parameters
out of what it receives. Here a rank sends itself nothing, and two ranks send the rows of a large parameter
from where they lie, and receive them where they belong.

Parameters are gathered a few ahead of the module that needs them, since between more than two ranks, or of
small parameters, what is sent and what is received are copies: 2(n-1)/n of what is under way.
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

# Whole gradients that wait for others' rows, at most, besides one bucket's; and parameters that do.
IN_FLIGHT_BYTES = 4 * BUCKET_BYTES


class Bucket:
    """Parameters whose rows go in one message to each other rank.

    shards: this rank's rows, which lie side by side, ready to be sent. own: the part of each parameter where
    they belong. theirs: the parts where the other ranks' rows belong, rank by rank.
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
        # By rank, how many elements its rows have; 0 for this one, to which nothing is sent.
        self._widths = [sum(rows.numel() for rows in self.rows(whole, rank)) for rank in range(axis.size)]
        self._widths[axis.rank] = 0

    def rows(self, whole: Sequence[Tensor], rank: int) -> list[Tensor]:
        """A rank's rows of each, flat."""
        found = []
        for tensor in whole:
            start, count = shard_rows(len(tensor), rank, self._axis.size)
            found.append(tensor[start : start + count].flatten())
        return found

    def of_others(self, whole: Sequence[Tensor]) -> list[Tensor]:
        ranks = [rank for rank in range(self._axis.size) if rank != self._axis.rank]
        return [rows for rank in ranks for rows in self.rows(whole, rank)]

    def scatter(self, grads: list[Tensor]) -> "Exchange":
        """Send each other rank its rows of `grads`; what comes is one part for this rank's from each."""
        sent = joined(self.of_others(grads))
        received = sent.new_empty((self._axis.size - 1) * self._mine)
        return self._start(sent, received, self._widths, self._from_each())

    def gather(self) -> "Exchange":
        """Send every other rank this rank's rows of the parameters; what comes is theirs."""
        sent = joined([self._flat] * (self._axis.size - 1))
        received = self.theirs[0]
        if len(self.theirs) > 1:
            received = sent.new_empty(sum(rows.numel() for rows in self.theirs))
        return self._start(sent, received, self._from_each(), self._widths)

    def add_up(self, received: Tensor, grads: Sequence[Tensor]) -> list[Tensor]:
        """This rank's rows of all ranks' gradients: what came, in the order of ranks, and then its own."""
        if self._mine and self._axis.size > 2:
            received = received.view(-1, self._mine).sum(dim=0)
        own = self.rows(grads, self._axis.rank)
        parts = received.split([rows.numel() for rows in own])
        torch._foreach_add_(parts, own)
        return [part.view_as(shard) for part, shard in zip(parts, self.shards, strict=True)]

    def take(self, received: Tensor) -> None:
        """Make the parameters whole."""
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
    """A bucket's rows on their way: flat, one rank's after another's."""

    bucket: Bucket
    sent: Tensor  # not to be freed meanwhile
    received: Tensor
    work: Any


class Rows:
    """`replicas.Reductions` over the rows in `ShardedParameter.tensor`, which the optimiser updates; the rows
    move to other memory here.

    Parameters are whole from the first forward after an update until backward has ended: gathered in the
    order of the model, and waited for by the module that needs them. Gradients add up whole, and beside the
    last backward every rank is sent its rows of them.
    """

    adds_up = True

    def __init__(
        self, plan: ModelPlan, stages: Sequence[nn.Module], sharded: Sequence[ShardedParameter], axis: Axis
    ) -> None:
        sharded_of = {one.module_parameter: one for one in sharded}
        groups = in_buckets(sharded_of)
        self._parameters = list(sharded_of)
        self._buckets = [Bucket(group, [sharded_of[one].tensor for one in group], axis) for group in groups]
        for bucket in self._buckets:
            for parameter, shard in zip(bucket.parameters, bucket.shards, strict=True):
                sharded_of[parameter].tensor = shard
        self._arrivals = Arrivals(groups[::-1], self._reduce)
        self._reducing: deque[Exchange] = deque()
        self._gathering: deque[Exchange] = deque()
        self._waiting: deque[Bucket] = deque()  # to be gathered after those
        self._gathered = True  # as they were made, of no value yet
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
        # One is always under way, or a parameter beyond the limit would be waited for where it is sent.
        while len(self._reducing) > 1 and sum(one.bucket.nbytes for one in self._reducing) > IN_FLIGHT_BYTES:
            self._add_up(self._reducing.popleft())

    @torch.no_grad()
    def _add_up(self, exchange: Exchange) -> None:
        """The bucket's whole gradients end here."""
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
        """Have the next buckets sent beside what is computed: one, and more up to the limit."""
        ahead = sum(one.bucket.nbytes for one in self._gathering)
        while self._waiting and (not self._gathering or ahead + self._waiting[0].nbytes <= IN_FLIGHT_BYTES):
            bucket = self._waiting.popleft()
            self._gathering.append(bucket.gather())
            ahead += bucket.nbytes


def _units(stage: nn.Module, plan: ModelPlan) -> list[nn.Module]:
    """What asks for its parameters together: blocks, and the modules at the ends."""
    ends = [getattr(stage, name) for name in (*plan.first, *plan.last)]
    units = [*stage.get_submodule(plan.blocks).children(), *(end for end in ends if end is not None)]
    held = {parameter for unit in units for parameter in unit.parameters()}
    assert held == set(stage.parameters()), "a parameter is in no block and at no end"
    return units
