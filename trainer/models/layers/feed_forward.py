"""The feed-forward network, with and without a gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear


def _quick_gelu(x: Tensor) -> Tensor:
    """GELU by a sigmoid (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2), as CLIP computes it."""
    return x * torch.sigmoid(1.702 * x)


_TANH = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _TANH,
    "gelu": F.gelu,
    "gelu_tanh": _TANH,
    "quick_gelu": _quick_gelu,
}


class FeedForward(nn.Module):
    """w2(f(w1 x) · w3 x) with a gate (Shazeer 2020, arXiv:2002.05202), w2(f(w1 x)) without.

    [batch, seq, hidden] → the same.

    hidden: width of input and output.
    width: width between the matrices.
    activation: swiglu, geglu, geglu_tanh, gelu, gelu_tanh or quick_gelu, which name f.
    gated: whether there is a w3.
    bias: whether the matrices have biases.
    """

    def __init__(self, hidden: int, width: int, activation: str, *, gated: bool, bias: bool) -> None:
        super().__init__()
        self.w1 = Linear(hidden, width, bias=bias)
        self.w2 = Linear(width, hidden, bias=bias)
        self.w3 = Linear(hidden, width, bias=bias) if gated else None
        self._activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        inner = self._activation(self.w1(x))
        return self.w2(inner if self.w3 is None else inner * self.w3(x))
