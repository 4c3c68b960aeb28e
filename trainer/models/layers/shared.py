"""What all blocks of one forward share: rotary positions and the attention mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class Stretch:
    """How rotary frequencies are divided so that a model reads longer texts than it was trained on.

    factor: what frequencies are divided by.
    slow_only: as in Llama 3.1: divide frequencies that turn less than `low` times in `original` positions,
        keep those that turn more than `high` times, and pass from one to the other linearly in between.
    low, high, original: see `slow_only`.
    """

    factor: float
    slow_only: bool = False
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def apply(self, frequencies: Tensor) -> Tensor:
        """Return the stretched frequencies; radians a position."""
        if not self.slow_only:
            return frequencies / self.factor
        turns = frequencies * (self.original / (2 * math.pi))
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * kept + frequencies / self.factor * (1 - kept)


class RotaryTables:
    """cos and sin of position · frequency (Su et al. 2021, arXiv:2104.09864), in float32, kept per device.

    Both are made for `rotate`: they have the whole head_dim, and the first half of the sines is negated. This
    is no module and has no buffers: the tables follow from the config, so a checkpoint needs none of them,
    and a model built on the meta device has nothing to fill in.

    head_dim: width of a head.
    theta: base of the frequencies.
    stretch: how frequencies are stretched; None: they are not.
    """

    def __init__(self, head_dim: int, theta: float, stretch: Stretch | None = None) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self.stretch = stretch
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
        if self.stretch is not None:
            frequencies = self.stretch.apply(frequencies)
        angles = positions.to(torch.float32)[..., None, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class Shared:
    """What all blocks of one forward share that attend to the same tokens.

    rotary: (cos, sin) of the sequence's positions, float32; see `RotaryTables`. None: positions are not
        rotary.
    mask: None for plain attention; else FlexAttention's block mask, or an additive mask broadcastable to
        [batch · views, heads, seq / views, keys].
    causal: what plain attention is: to a token itself and those before it, or to all.
    views: a row is so many equal parts, which do not attend to each other: attention computes them as rows.
        Their mask is that of a part. Two views of a text or a picture travel as one row.

    Not a dataclass, tuple or dictionary: FSDP's mixed precision looks into those, and would cast the tables
    for every block anew.
    """

    def __init__(
        self,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | BlockMask | None = None,
        *,
        causal: bool = True,
        views: int = 1,
    ) -> None:
        self.rotary = rotary
        self.mask = mask
        self.causal = causal
        self.views = views
