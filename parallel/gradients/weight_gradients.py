"""Weight gradients apart from input gradients, for schedules that split backward (zero bubble).

A stage's backward runs once, whole, but for the products that make its linear layers' weight gradients:
those are put off (Qi et al. 2023, arXiv:2401.10241) until the schedule has nothing more urgent. What a layer
needs for it, its input and its output's gradient, lives until then, as do the stage's own, which torch's
pipelining keeps; the weight may be gone. torch's own stages run autograd over again for each group of
weights, and recompute a checkpointed block for each as well.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Work(Protocol):
    """What is put off."""

    @property
    def weight(self) -> nn.Parameter | None: ...
    def run(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Product:
    """rowsᵀ · inputs, of rows [n, out] and inputs [n, in], for `weight.grad`."""

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


class WeightGradients:
    """Where the layers of one stage leave what can wait."""

    def __init__(self) -> None:
        self._open: list[Work] | None = None

    @contextmanager
    def collected(self) -> Iterator[list[Work]]:
        """What backward puts off meanwhile. Each is to be run once, in any order."""
        found: list[Work] = []
        self._open = found
        try:
            yield found
        finally:
            self._open = None

    def put_off(self, work: Work) -> bool:
        """Whether `work` was taken; if not, it is to be done now."""
        if self._open is None:
            return False
        self._open.append(work)
        return True


def apart(stage: nn.Module) -> WeightGradients:
    """Let the linear layers of a stage put off their weights' gradients. Layers in fp8 do not."""
    gradients = WeightGradients()
    for module in stage.modules():
        if hasattr(module, "weight_gradients"):  # as those of `async_tensor` have
            module.weight_gradients = gradients  # type: ignore[assignment]
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = functools.partial(_linear, module, gradients)  # type: ignore[method-assign]
    return gradients


def _linear(module: nn.Linear, gradients: WeightGradients, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, module.weight, module.bias)
    return _Linear.apply(x, module.weight, module.bias, gradients)


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] or None → [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None, gradients: WeightGradients
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        # The leaf itself, whose .grad it is: under FSDP the gathered parameter, which outlives its memory.
        ctx.weight, ctx.gradients = weight, gradients
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        x_grad = grad @ weight if wants_x else None
        bias_grad = rows.sum(dim=0) if wants_bias else None
        weight_grad = None
        if wants_weight:
            weight_grad = weight_gradient(ctx.weight, rows, x.flatten(0, -2), ctx.gradients)
        return x_grad, weight_grad, bias_grad, None


def weight_gradient(
    weight: nn.Parameter, rows: Tensor, inputs: Tensor, gradients: WeightGradients | None
) -> Tensor | None:
    """rowsᵀ · inputs, of rows [n, out] and inputs [n, in]; None where it is put off."""
    if gradients is not None and gradients.put_off(Product(weight, rows, inputs)):
        return None
    return rows.T @ inputs
