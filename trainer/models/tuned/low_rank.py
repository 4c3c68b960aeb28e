"""LoRA: a branch of low rank beside a frozen linear layer (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.layers.linear import Linear


class LowRank(nn.Module):
    """scale · B A x: [..., in] → [..., out].

    inner, outer: widths of input and result.
    rank: rows of A [rank, in] and columns of B [out, rank].
    scale: alpha / rank.
    """

    def __init__(self, inner: int, outer: int, *, rank: int, scale: float) -> None:
        super().__init__()
        self.a = Linear(inner, rank, bias=False)
        self.b = Linear(rank, outer, bias=False)
        self.scale = scale
        if not self.b.weight.is_meta:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        # The small product is scaled, not the large result.
        return self.b(self.a(x) * self.scale)


class LoRALinear(Linear):
    """A linear layer with a branch of low rank: W x + bias + scale · B A x.

    Implements `common.module_interfaces.HasLowRank`. W and bias keep their names.
    """

    def __init__(self, layer: nn.Linear, *, rank: int, scale: float) -> None:
        device = layer.weight.device
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        with torch.device(device):
            self.lora = LowRank(layer.in_features, layer.out_features, rank=rank, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora(x)

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return a plain layer with W + scale · B A, in W's memory; the product is in float64, so that it is
        rounded once.
        """
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        update = self.lora.b.weight.double() @ self.lora.a.weight.double() * self.lora.scale
        self.weight.copy_(self.weight.double() + update)
        plain.weight, plain.bias = self.weight, self.bias
        return plain
