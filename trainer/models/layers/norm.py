"""Normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(kind: str, features: int, eps: float, bias: bool = True) -> nn.Module:
    """Return the norm that `kind` names: rms, or layer, which subtracts the mean and may add a bias."""
    return RMSNorm(features, eps) if kind == "rms" else nn.LayerNorm(features, eps, bias=bias)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dim, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        # torch has a fused kernel for CUDA only; elsewhere its many small ones take twice _RMSNorm's time.
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        ctx.dtype = x.dtype
        return (unit * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        weight_grad = (unit * grad).flatten(0, -2).sum(dim=0)
        unit_grad = grad.to(unit.dtype) * weight
        along = torch.linalg.vecdot(unit_grad, unit).div_(unit.shape[-1])
        x_grad = unit_grad.addcmul_(unit, along[..., None], value=-1).mul_(scale)
        return x_grad.to(ctx.dtype), weight_grad.to(weight.dtype), None
