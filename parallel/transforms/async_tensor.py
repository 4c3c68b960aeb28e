"""Asynchronous tensor parallelism (`parallel.async_tp`): messages behind the matrix products next to them.

The gather before a column-parallel product is one operator with the product, and so is the reduce-scatter
after a row-parallel one. The operator multiplies a part of the sequence while the next part is copied from
peer to peer over NVLink: torch's `symm_mem::fused_all_gather_matmul` and `fused_matmul_reduce_scatter`
(symmetric memory, in torch an alpha). Where several products share a gathered input, one gather serves them
all. On a CPU, as in tests, the same functions run on plain collectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.gradients.weight_gradients import DeferredGradients, DefersWeightGradients, weight_gradient
from parallel.layout.mesh import Axis
from parallel.messages import collectives
from parallel.messages.collectives import SEQUENCE
from parallel.relied_on import borrow, insist

_CAPABILITY = (8, 0)  # as torch's own tests of the two operators require


def check(device: torch.device, axis: Axis) -> None:
    """ValueError, one line with the remedy, where `parallel.async_tp` is not possible."""
    if axis.size == 1:
        return
    # The module defines the operators; torch 2.11 does so when the module is imported.
    borrow("torch", "torch.distributed._symmetric_memory", "empty")
    insist("torch", torch.ops.symm_mem, "fused_all_gather_matmul", "fused_matmul_reduce_scatter")
    if device.type != "cuda":
        raise ValueError(
            f"parallel.async_tp=true: a {device.type} has no peer-to-peer copies beside its products: set it "
            "to false"
        )
    if (have := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"parallel.async_tp=true needs compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]}, {name} has "
            f"{have[0]}.{have[1]}: set it to false"
        )
    mine = device.index or 0
    first = mine - axis.rank  # tp is the axis whose ranks are neighbours
    if first < 0 or first + axis.size > torch.cuda.device_count():
        raise ValueError(
            f"parallel.async_tp=true: the devices of parallel.tp={axis.size} ranks are not all on one "
            "machine: lower tp, or set async_tp to false"
        )
    for peer in range(first, first + axis.size):
        if peer != mine and not torch.cuda.can_device_access_peer(mine, peer):
            raise ValueError(
                f"parallel.async_tp=true: devices {mine} and {peer} do not reach each other's memory: set it "
                "to false"
            )


@dataclass(frozen=True, eq=False)
class Gathered:
    """A module's gathered input [batch, seq, in], and its products with the column-parallel layers' weights.

    Passed on in the input's place. The layers do not store it: a compiled and recomputed block must not leave
    state behind.

    whole: the gathered input.
    products: [batch, seq, out] of each layer, in the layers' order.
    """

    whole: Tensor
    products: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        return self.whole.shape


class ColumnLinear(DefersWeightGradients):
    """A column-parallel layer, the `number`-th of its module; its product comes with the gathered input."""

    def __init__(self, layer: nn.Linear, number: int) -> None:
        super().__init__()
        self.weight, self.bias, self.number = layer.weight, layer.bias, number

    def forward(self, x: Gathered) -> Tensor:
        product = x.products[self.number]
        return product if self.bias is None else product + self.bias


class RowLinear(DefersWeightGradients):
    """A row-parallel layer: its product, summed over ranks and scattered along seq; then its bias."""

    def __init__(self, layer: nn.Linear, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.bias, self.group = layer.weight, layer.bias, group

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            product = _ProductScatter.apply(x, self.weight, self.deferred, self.group)
        else:
            product = product_scatter(x, self.weight.T, self.group)
        return product if self.bias is None else product + self.bias


def gather(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Gather the module's first argument, and compute its column-parallel layers' products with it."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:  # compiled once for all blocks
        columns = [layer for layer in module.children() if isinstance(layer, ColumnLinear)]
        if not columns:
            return collectives.gather(args[0], SEQUENCE, group), *args[1:]
        weights = [column.weight for column in columns]
        if torch.is_grad_enabled():
            x, *products = _GatherProducts.apply(args[0], columns[0].deferred, group, *weights)
        else:  # torch.compile cannot trace a Function there
            x, products = gather_products(args[0], [weight.T for weight in weights], group)
        return Gathered(x, tuple(products)), *args[1:]

    module.register_forward_pre_hook(hook)


class _GatherProducts(torch.autograd.Function):
    """x [batch, seq/ranks, in], weights [out, in] → gathered x and its products [batch, seq, out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        deferred: DeferredGradients | None,
        group: dist.ProcessGroup,
        *weights: nn.Parameter,
    ) -> tuple[Tensor, ...]:
        whole, products = gather_products(x, [weight.T for weight in weights], group)
        ctx.save_for_backward(whole, *weights)
        ctx.weights, ctx.deferred, ctx.group = weights, deferred, group
        ctx.set_materialize_grads(False)  # the gathered input itself may be unused
        return whole, *products

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        whole, *weights = ctx.saved_tensors
        direct, found = grads[0], [grad for grad in grads[1:] if grad is not None]
        assert len(found) == len(weights), "every column-parallel layer's product is used"
        x_grad = None
        if ctx.needs_input_grad[0]:
            # One product of all layers side by side, so that one scatter serves them all.
            x_grad = product_scatter(torch.cat(found, dim=-1), torch.cat(weights), ctx.group)
            if direct is not None:
                x_grad = x_grad + collectives.scatter_sum(direct, SEQUENCE, ctx.group)
        inputs = whole.flatten(0, -2)
        weight_grads = [
            weight_gradient(weight, grad.flatten(0, -2), inputs, ctx.deferred) if wanted else None
            for weight, grad, wanted in zip(ctx.weights, found, ctx.needs_input_grad[3:])
        ]
        return x_grad, None, None, *weight_grads


class _ProductScatter(torch.autograd.Function):
    """x [batch, seq, in/ranks], weight [out, in/ranks] → this rank's [batch, seq/ranks, out] of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: nn.Parameter,
        deferred: DeferredGradients | None,
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weight, ctx.deferred, ctx.group = weight, deferred, group
        return product_scatter(x, weight.T, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        whole, (x_grad,) = gather_products(grads[0], [weight], ctx.group)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = weight_gradient(ctx.weight, whole.flatten(0, -2), x.flatten(0, -2), ctx.deferred)
        return x_grad, weight_grad, None, None


def gather_products(
    x: Tensor, factors: Sequence[Tensor], group: dist.ProcessGroup
) -> tuple[Tensor, list[Tensor]]:
    """x [batch, seq/ranks, in] gathered along seq, and its products with factors [in, out]."""
    if x.is_cuda:
        whole, products = torch.ops.symm_mem.fused_all_gather_matmul(
            x.contiguous(), list(factors), SEQUENCE, group.group_name
        )
        return whole, products
    whole = collectives.gather_whole(x, SEQUENCE, group)
    return whole, [whole @ factor for factor in factors]


def product_scatter(x: Tensor, factor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x [batch, seq, in] @ factor [in, out], summed over ranks: this rank's [batch, seq/ranks, out]."""
    if x.is_cuda:
        return torch.ops.symm_mem.fused_matmul_reduce_scatter(x, factor, "sum", SEQUENCE, group.group_name)
    return collectives.scatter_sum(x @ factor, SEQUENCE, group)
