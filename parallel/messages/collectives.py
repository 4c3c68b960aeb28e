"""Collectives inside autograd over a dim of a tensor, for sequence and context parallelism."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SEQUENCE = 1
"""The dim of [batch, seq, hidden] that tensor and context parallelism shard between blocks."""

# torch 2.13 renamed them, and warns about the names that 2.11 has.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Reduction:
    """A reduce-scatter under way; see `start_reduce_scatter`."""

    work: Any
    sent: Tensor  # must not be freed meanwhile
    received: Tensor
    output: Tensor

    def finish(self) -> None:
        self.work.wait()
        torch.sum(self.received, dim=0, out=self.output)


def start_reduce_scatter(output: Tensor, stacked: Tensor, group: dist.ProcessGroup) -> Reduction:
    """stacked [ranks, …], part r for rank r → output […], the sum of this rank's parts, after `finish`.

    For gloo, whose own reduce-scatter takes longer than its all-reduce. An all-to-all and a local sum take a
    third of the time. Summed in the order of ranks, half precision in float32.
    """
    received = torch.empty_like(stacked)
    work = dist.all_to_all_single(received.flatten(), stacked.flatten(), group=group, async_op=True)
    return Reduction(work, stacked, received, output)


def gather_whole(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """[…, n, …] of every rank → […, n·ranks, …] in rank order. Outside autograd."""
    ranks = group.size()
    stacked = x.new_empty((ranks, *x.shape))
    all_gather_single(stacked.flatten(), x.contiguous().flatten(), group=group)
    shape = (*x.shape[:dim], x.shape[dim] * ranks, *x.shape[dim + 1 :])
    return stacked.movedim(0, dim).reshape(shape)


def scatter_sum(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """[…, n·ranks, …] → this rank's […, n, …] of the sum over ranks. Outside autograd."""
    ranks = group.size()
    shape = (*x.shape[:dim], ranks, x.shape[dim] // ranks, *x.shape[dim + 1 :])
    stacked = x.reshape(shape).movedim(dim, 0).contiguous()
    mine = x.new_empty(stacked.shape[1:])
    if x.device.type == "cpu":
        torch.sum(all_to_all(stacked, group), dim=0, out=mine)  # as in `start_reduce_scatter`
    else:
        reduce_scatter_single(mine, stacked, group=group)
    return mine


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return gather_whole(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sum(grads[0], ctx.dim, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return scatter_sum(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather_whole(grads[0], ctx.dim, ctx.group), None, None


def gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All-gather along `dim`. The gradient is reduce-scattered, because every rank uses the whole."""
    return _Gather.apply(x, dim, group)


def reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Sum over ranks, scattered along `dim`. The gradient is all-gathered."""
    return _ReduceScatter.apply(x, dim, group)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()  # a pipeline detaches a stage's output in place, which a view does not allow

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, with a gradient of `factor` times what comes back."""
    return _ScaleGradient.apply(x, factor)


def all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[ranks, …], part r for rank r → [ranks, …], part r from rank r. Outside autograd."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received.flatten(), parts.contiguous().flatten(), group=group)
    return received


def _exchange(
    parts: Sequence[Tensor], split: int, join: int, beside: int, group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """As `exchange`, outside autograd."""
    ranks = group.size()
    stacked = [part.unflatten(split, (ranks, -1)).movedim(split, 0) for part in parts]
    widths = [part.shape[1 + beside] for part in stacked]
    sent = torch.cat(stacked, dim=1 + beside)
    received = all_to_all(sent, group).split(widths, dim=1 + beside)
    return tuple(torch.cat(part.unbind(), dim=join) for part in received)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, split: int, join: int, beside: int, group: dist.ProcessGroup, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.split, ctx.join, ctx.beside, ctx.group = split, join, beside, group
        return _exchange(parts, split, join, beside, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *_exchange(grads, ctx.join, ctx.split, ctx.beside, ctx.group)


def exchange(
    parts: Sequence[Tensor], *, split: int, join: int, beside: int, group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """All-to-all of several tensors in one message; the gradients take the way back.

    Rank r gets the r-th part along `split` of every rank's tensors, joined along `join` in rank order: dim
    `split` is whole before and sharded after, dim `join` sharded before and whole after.

    parts: tensors that may differ in size along `beside`.
    """
    return _Exchange.apply(split, join, beside, group, *parts)
