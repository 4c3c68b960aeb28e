"""Bottleneck adapters behind attention and feed-forward layers (Houlsby et al. 2019, arXiv:1902.00751)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear


class Bottleneck(nn.Module):
    """x + W_up gelu(W_down x + b_down) + b_up: [..., hidden] → the same."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.down, self.up = Linear(hidden, width), Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a module with an adapter: the adapter's result takes the place of the module's."""
    adapter = module.get_submodule("adapter")
    return adapter(output)  # type: ignore[no-any-return]
