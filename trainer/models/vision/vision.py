"""The vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.layers.norm import norm
from trainer.models.layers.shared import Shared
from trainer.models.vision.block import Block
from trainer.models.vision.config import VisionConfig
from trainer.models.vision.embedding import PatchEmbedding
from trainer.models.vision.head import AttentionPool, PixelHead, PooledHead


class Vision(nn.Module):
    """Embedding of patches, blocks, final norm, head; or any consecutive part of them, as in `Decoder`."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        sizes: dict[str, Any] = {
            "hidden": cfg.hidden,
            "heads": cfg.heads,
            "ffn_hidden": cfg.ffn_width,
            "activation": cfg.activation,
            "norm_eps": cfg.norm_eps,
        }
        self.embed: PatchEmbedding | None = PatchEmbedding(
            values=cfg.patch_values,
            hidden=cfg.hidden,
            patches=cfg.pictures().patches,
            prefix=cfg.prefix,
            learned=cfg.positions == "learned",
            bias=cfg.patch_bias,
            masking=cfg.head == "pixels",
            norm_eps=cfg.norm_eps if cfg.embed_norm else None,
        )
        self.layers = nn.ModuleDict({str(layer): Block(**sizes) for layer in range(cfg.layers)})
        self.norm: nn.Module | None = norm("layer", cfg.hidden, cfg.norm_eps)
        self.head: nn.Module | None
        if cfg.head == "pixels":
            self.head = PixelHead(cfg.hidden, cfg.patch_values)
        else:
            pool = AttentionPool(**sizes) if cfg.pool == "attention" else None
            self.head = PooledHead(
                cfg.pool, cfg.head_widths, prefix=cfg.prefix, bias=cfg.head == "classes", attention=pool
            )
        self.sequence_ranks = 1

    def set_sequence_ranks(self, ranks: int) -> None:
        """Implements `common.module_interfaces.SharesSequence`."""
        self.sequence_ranks = ranks

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        places: Tensor | None = None,
        **of_the_loss: Tensor,
    ) -> Tensor:
        """Return hidden states [batch, seq, hidden] without a `head`; with one what it gives, see there.

        x: patches [batch, seq, values] with an `embed`, else hidden states. seq: of all views of a picture.
        positions: [batch, seq], each patch's number in its picture, the prefix included; None: counted.
        places: [batch, places], the patches that are masked and whose pixels are wanted, as places in the
            sequence; see `ModelInputs.places`.
        of_the_loss: tensors that only the objective reads.
        """
        picture = self.cfg.pictures().positions
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None] % picture
        views = max(1, positions.shape[1] * self.sequence_ranks // picture)
        if self.embed is not None:
            x = self.embed(x, positions, places)
        shared = Shared(None, causal=False, views=views)
        for block in self.layers.values():
            x = block(x, shared)
        if self.norm is not None:
            x = self.norm(x)
        if isinstance(self.head, PooledHead):
            return self.head(x, views)
        return x if self.head is None else self.head(x, places)
