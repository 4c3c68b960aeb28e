"""The gated feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, arXiv:2002.05202). [batch, seq, hidden] → the same."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = Linear(hidden, width, bias=False)
        self.w2 = Linear(width, hidden, bias=False)
        self.w3 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
