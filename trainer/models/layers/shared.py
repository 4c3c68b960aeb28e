"""What all blocks of one forward share: rotary positions and the attention mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


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


class Shared:
    """What all blocks of one forward share.

    rotary: (cos, sin) of the sequence's positions, float32; see `RotaryTables`.
    mask: None for plain causal attention; else FlexAttention's block mask, or an additive mask broadcastable
        to [batch, heads, seq, keys].

    Not a dataclass, tuple or dictionary: FSDP's mixed precision looks into those, and would cast the tables
    for every block anew.
    """

    def __init__(self, rotary: tuple[Tensor, Tensor], mask: Tensor | BlockMask | None = None) -> None:
        self.rotary = rotary
        self.mask = mask
