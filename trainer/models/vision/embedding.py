"""Patches of pictures → hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear
from trainer.models.layers.norm import norm


class PatchEmbedding(nn.Module):
    """A linear layer on patches, with learnt tokens before them, positions, and a vector for masked patches.

    [batch, views · (prefix + patches), values] → [batch, the same, hidden] (Dosovitskiy et al. 2020,
    arXiv:2010.11929, equation 1). A convolution whose stride is its kernel's size is this linear layer.

    values: values of a patch, in the order of `trainer.models.pictures.Pictures.patch`.
    hidden: width of the hidden states.
    patches: patches of a picture, a square of them.
    prefix: learnt tokens before a picture's patches: class token and registers.
    learned: positions are a learnt table; else the sines and cosines of `sines_2d`.
    bias: whether the linear layer has one.
    masking: whether there is a vector that stands for masked patches.
    norm_eps: of a LayerNorm on the result; None: none.
    """

    def __init__(
        self,
        *,
        values: int,
        hidden: int,
        patches: int,
        prefix: int,
        learned: bool,
        bias: bool,
        masking: bool,
        norm_eps: float | None,
    ) -> None:
        super().__init__()
        self.hidden, self.patches, self.prefix = hidden, patches, prefix
        self.project = Linear(values, hidden, bias=bias)
        self.tokens = _table(prefix, hidden) if prefix else None
        self.places = _table(prefix + patches, hidden) if learned else None
        self.masked = _table(1, hidden) if masking else None
        self.norm = norm("layer", hidden, norm_eps) if norm_eps is not None else None
        self._sines: dict[torch.device, Tensor] = {}

    def forward(self, x: Tensor, positions: Tensor, places: Tensor | None = None) -> Tensor:
        """positions: [batch, seq], each entry's number in its picture, the prefix included.
        places: [batch, places], places in the sequence that are masked; negative: none.
        """
        h = self.project(x)
        if self.masked is not None and places is not None:
            # A column more, for the places that are none.
            hidden = torch.zeros(len(x), x.shape[1] + 1, dtype=torch.bool, device=x.device)
            hidden.scatter_(1, torch.where(places < 0, x.shape[1], places), True)
            h = torch.where(hidden[:, :-1, None], self.masked.to(h.dtype), h)
        if self.tokens is not None:
            own = F.embedding(positions.clamp(max=self.prefix - 1), self.tokens)
            h = torch.where((positions < self.prefix)[..., None], own, h)
        table = self._sines_on(x.device).to(h.dtype) if self.places is None else self.places
        h = h + F.embedding(positions, table)
        return h if self.norm is None else self.norm(h)

    def _sines_on(self, device: torch.device) -> Tensor:
        if device not in self._sines:
            # As in `RotaryTables`: tensors of inference mode could not be saved for a later backward.
            with torch.inference_mode(False), torch.no_grad():
                grid = sines_2d(round(self.patches**0.5), self.hidden)
                table = torch.cat((torch.zeros(self.prefix, self.hidden, dtype=grid.dtype), grid))
                self._sines[device] = table.to(device=device, dtype=torch.float32)
        return self._sines[device]


def sines_2d(side: int, hidden: int) -> Tensor:
    """Return fixed positions of side × side patches, float64 [side², hidden], as He et al. (2021,
    arXiv:2111.06377) have them.

    A quarter of the features each: sines of the column, cosines of the column, sines and cosines of the row,
    with frequencies 10000^(-i / (hidden / 4)), i = 0, 1, …
    """
    frequencies = 10000.0 ** -(torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns = line[None].expand(side, -1, -1)
    rows = line[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)


def _table(rows: int, hidden: int) -> nn.Parameter:
    table = nn.Parameter(torch.empty(rows, hidden))
    if not table.is_meta:  # as in layers.Linear
        nn.init.normal_(table, std=0.02)
    return table
