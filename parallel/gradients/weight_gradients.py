"""Weight gradients computed apart from input gradients, for schedules that split backward (zero bubble).

A stage's backward runs once and whole, except for the matrix products that give its linear layers' weight
gradients. These are deferred (Qi et al. 2023, arXiv:2401.10241) until the schedule has nothing more urgent:

    backward of the stage   input gradients, sent to the previous stage; [rows, inputs] of each layer are kept
    …                       other stages' forwards and backwards on this rank
    deferred work           rowsᵀ · inputs of each layer, then FSDP's reduction

The input of a layer and the gradient of its output live until its deferred product is computed. So do the
stage's own input and output gradient, which torch's pipelining keeps; the gathered weight may be dropped.
torch's own stages run autograd again for each group of weights, and recompute a checkpointed block for each.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeferredWork(Protocol):
    """Work of a backward that can be done later; `weight` is the parameter whose gradient it computes."""

    @property
    def weight(self) -> nn.Parameter | None: ...
    def run(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Product:
    """rowsᵀ · inputs, of rows [n, out] and inputs [n, in], added to `weight.grad`."""

    weight: nn.Parameter
    rows: Tensor
    inputs: Tensor

    @torch.no_grad()
    def run(self) -> None:
        gradient = self.rows.T @ self.inputs
        if self.weight.grad is None:
            self.weight.grad = gradient
        else:
            self.weight.grad += gradient


class DeferredGradients:
    """Collects the deferred work of one stage's layers while `collected` is entered."""

    def __init__(self) -> None:
        self._open: list[DeferredWork] | None = None

    @contextmanager
    def collected(self) -> Iterator[list[DeferredWork]]:
        """A list that fills with deferred work. Each is to be run once, in any order."""
        found: list[DeferredWork] = []
        self._open = found
        try:
            yield found
        finally:
            self._open = None

    def defer(self, work: DeferredWork) -> bool:
        """Take `work` and return True; False outside `collected`, where the work is to be done at once."""
        if self._open is None:
            return False
        self._open.append(work)
        return True


class DefersWeightGradients(nn.Module):
    """A layer with autograd functions of its own, which defer to `deferred` where it is set."""

    deferred: DeferredGradients | None = None


def defer_weight_gradients(stage: nn.Module) -> DeferredGradients:
    """Let the linear layers of a stage defer their weights' gradients. Layers in fp8 do not."""
    deferred = DeferredGradients()
    for module in stage.modules():
        if isinstance(module, DefersWeightGradients):
            module.deferred = deferred
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = functools.partial(_linear, module, deferred)  # type: ignore[method-assign]
    return deferred


def _linear(module: nn.Linear, deferred: DeferredGradients, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias, deferred)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, deferred: DeferredGradients | None) -> Tensor:
    """Return x · weightᵀ + bias, whose backward defers the weight's gradient where `deferred` is given."""
    if deferred is None or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, deferred)


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] or None → [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None, deferred: DeferredGradients
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        # The leaf itself, whose .grad it is: under FSDP the gathered parameter, which outlives its memory.
        ctx.weight, ctx.deferred = weight, deferred
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        x_grad = grad @ weight if needs_x else None
        bias_grad = rows.sum(dim=0) if needs_bias else None
        weight_grad = None
        if needs_weight:
            weight_grad = weight_gradient(ctx.weight, rows, x.flatten(0, -2), ctx.deferred)
        return x_grad, weight_grad, bias_grad, None


def weight_gradient(
    weight: nn.Parameter, rows: Tensor, inputs: Tensor, deferred: DeferredGradients | None
) -> Tensor | None:
    """rowsᵀ · inputs, of rows [n, out] and inputs [n, in]; None where the product is deferred."""
    if deferred is not None and deferred.defer(Product(weight, rows, inputs)):
        return None
    return rows.T @ inputs
