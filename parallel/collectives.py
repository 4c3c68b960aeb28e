"""Collectives inside autograd, over a dimension of a tensor: the two that sequence parallelism needs."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """[…, n, …] of every rank → […, n·ranks, …] in rank order."""
    ranks = group.size()
    stacked = x.new_empty((ranks, *x.shape))
    dist.all_gather_into_tensor(stacked, x.contiguous(), group=group)
    shape = (*x.shape[:dim], x.shape[dim] * ranks, *x.shape[dim + 1 :])
    return stacked.movedim(0, dim).reshape(shape)


def _reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """[…, n·ranks, …] → this rank's […, n, …] of the sum over ranks."""
    ranks = group.size()
    shape = (*x.shape[:dim], ranks, x.shape[dim] // ranks, *x.shape[dim + 1 :])
    stacked = x.reshape(shape).movedim(dim, 0).contiguous()
    mine = x.new_empty(stacked.shape[1:])
    dist.reduce_scatter_tensor(mine, stacked, group=group)
    return mine


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(grads[0], ctx.dim, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grads[0], ctx.dim, ctx.group), None, None


def gather(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """All-gather along `dim`; its gradient is summed and scattered, since every rank uses the whole."""
    return _Gather.apply(x, dim, group)


def reduce_scatter(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Sum over ranks, scattered along `dim`; its gradient is gathered."""
    return _ReduceScatter.apply(x, dim, group)
