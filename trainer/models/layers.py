"""The small pieces: normalisation, rotary positions, the gated feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dim, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, arXiv:2002.05202). [batch, seq, hidden] → the same."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RotaryTables:
    """cos and sin of position · frequency (Su et al. 2021, arXiv:2104.09864), in float32, kept per device.

    Not a module and not buffers: the tables follow from two numbers, so nothing of them belongs in a
    checkpoint, and building the model on the meta device leaves nothing to fill.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def upto(self, seq: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 … seq-1, each [seq, 1, head_dim / 2]."""
        tables = self._tables.get(device)
        if tables is None or tables[0].shape[0] < seq:
            tables = self._tables[device] = self._compute(seq, device)
        return tables[0][:seq], tables[1][:seq]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of `positions` [batch, seq] (each below 2²⁴), each [batch, seq, 1, head_dim / 2]."""
        angles = positions.to(torch.float32)[..., None, None] * self._frequencies(positions.device)
        return angles.cos(), angles.sin()

    def _frequencies(self, device: torch.device) -> Tensor:
        exponents = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim
        return self.theta**-exponents

    def _compute(self, seq: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Made inside `generate`'s inference mode, the tables could never be saved for a backward later.
        with torch.inference_mode(False), torch.no_grad():
            return self.at(torch.arange(seq, device=device))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature pairs (i, i + head_dim/2) of x [batch, seq, heads, head_dim], in float32.

    The pairing is that of GPT-NeoX and Hugging Face Llama, so weights need no permutation on export.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
