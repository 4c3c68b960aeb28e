"""Linear layers, embedding, normalisation, rotary positions, the gated feed-forward network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """torch's own, except that it draws no values on the meta device.

    Drawing there is slow Python that imports torch._dynamo, a second at every start. A run's first values
    come from the `ModelPlan`.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """torch's own, with the same exception as `Linear`."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


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


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, arXiv:2002.05202). [batch, seq, hidden] → the same."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = Linear(hidden, width, bias=False)
        self.w2 = Linear(width, hidden, bias=False)
        self.w3 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RotaryTables:
    """cos and sin of position · frequency (Su et al. 2021, arXiv:2104.09864), in float32, kept per device.

    Both are made for `rotate`: they have the whole head_dim, and the first half of the sines is negated. This
    is no module and has no buffers: the tables follow from two numbers, so a checkpoint needs none of them,
    and a model built on the meta device has nothing to fill in.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def upto(self, seq: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) of positions 0 … seq-1, each [seq, 1, head_dim]."""
        tables = self._tables.get(device)
        if tables is None or tables[0].shape[0] < seq:
            # Tensors made inside `generate`'s inference mode could not be saved for a later backward.
            with torch.inference_mode(False), torch.no_grad():
                tables = self._tables[device] = self.at(torch.arange(seq, device=device))
        return tables[0][:seq], tables[1][:seq]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) of `positions` [batch, seq], all below 2²⁴: each [batch, seq, 1, head_dim]."""
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        frequencies = self.theta ** -(exponents / self.head_dim)
        angles = positions.to(torch.float32)[..., None, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature pairs (i, i + head_dim/2) of x [batch, seq, heads, head_dim], in float32.

    (a, b) → (a cos - b sin, b cos + a sin). The pairing is GPT-NeoX's and Hugging Face Llama's, so weights
    need no permutation on export.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)
