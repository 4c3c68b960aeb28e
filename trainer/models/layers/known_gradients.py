"""Autograd nodes for a loss whose gradients its forward has found, up to the factor that backward brings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VOCAB_BLOCK = 8192
"""Rows of the vocabulary whose gradient is computed at a time, where it is added to a total of a finer dtype:
so many rows exist twice, once in each dtype.
"""


class GradientSum:
    """One buffer for the gradients of a weight that several forwards have found, until their backwards run.

    The last backward that is still to come returns the sum. Those before it return None, or with `zeros` a
    gradient of zeros. All backwards must bring the same factor; else the sum is NaN, and the optimiser step
    is skipped.
    """

    def __init__(self, *, zeros: bool = False) -> None:
        self.waiting = 0
        self._zeros = zeros
        self._sum: Tensor | None = None
        self._factor: Tensor | None = None

    def buffer(self, weight: Tensor) -> Tensor:
        """Return the sum for one more forward to add its gradient to, of the weight's shape, at least
        float32.
        """
        self.waiting += 1
        if self._sum is None:
            self._sum = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        return self._sum

    def take(self, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the gradient of one backward; factor [1] is the gradient of its loss."""
        assert self._sum is not None, "the head's backward runs once"
        known, self._factor = self._factor, factor
        if known is not None:
            self._factor = torch.where(known == factor, factor, torch.nan)
        self.waiting -= 1
        if self.waiting:
            return torch.zeros_like(self._sum, dtype=dtype) if self._zeros else None
        # Given away and scaled in place: vocab × hidden is too large to hold twice.
        gradient = self._sum.mul_(self._factor).to(dtype)
        self._sum = self._factor = None
        return gradient


class HiddenGradient(torch.autograd.Function):
    """`value`, as a function of `hidden` whose gradient is known to be `gradient`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the head's backward runs once"
        return gradient.mul_(_one_factor(factor)), None, None


class WeightGradient(torch.autograd.Function):
    """`value`, as a function of `weight` whose gradient is in `gradients`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, gradients: GradientSum) -> Tensor:
        ctx.gradients, ctx.dtype = gradients, weight.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, None, None]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the head's backward runs once"
        return gradients.take(_one_factor(factor), ctx.dtype), None, None


def add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total [vocab, hidden] += gradientᵀ hidden; `total` may be of a finer dtype than the factors."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for rows, columns in zip(total.split(VOCAB_BLOCK), gradient.split(VOCAB_BLOCK, dim=1)):
        rows += _exact_product(columns.T, hidden) if gradient.dtype == torch.float16 else columns.T @ hidden


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left · right in float32, of two float16 matrices.

    In float16 a sum over many rows overflows here, before backward applies the loss scale.
    """
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # no CPU kernel gives a product of another type than its factors'


def _one_factor(factors: Tensor) -> Tensor:
    """Return [1]: the factor that all sequences have; NaN where they differ."""
    return torch.where((factors == factors[0]).all(), factors[:1], torch.nan)
