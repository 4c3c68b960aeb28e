"""The tower for texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.layers.linear import Embedding
from trainer.models.layers.masks import attention_mask
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import Shared
from trainer.models.towers.head import TextHead
from trainer.models.towers.image_text_config import TextTowerConfig
from trainer.models.vision.block import Block


class TextTower(nn.Module):
    """Embedding, blocks, final norm, head; or any consecutive part of them.

    cfg: its keys.
    vocab: number of token ids.
    embedding: width of an embedding.
    learnt: what the head learns besides; see `TextHead`.
    """

    def __init__(self, cfg: TextTowerConfig, *, vocab: int, embedding: int, learnt: str) -> None:
        super().__init__()
        self.causal = cfg.causal
        self.embed: Embedding | None = Embedding(vocab, cfg.hidden)
        self.places: Embedding | None = Embedding(cfg.max_positions, cfg.hidden)
        self.layers = nn.ModuleDict(
            {
                str(layer): Block(
                    hidden=cfg.hidden,
                    heads=cfg.heads,
                    ffn_hidden=cfg.ffn_width,
                    activation=cfg.activation,
                    norm_eps=cfg.norm_eps,
                )
                for layer in range(cfg.layers)
            }
        )
        self.norm: nn.Module | None = norm("layer", cfg.hidden, cfg.norm_eps)
        width = 0 if cfg.project == "none" else embedding
        self.head: TextHead | None = TextHead(
            cfg.hidden, width, bias=cfg.project == "linear_bias", learnt=learnt
        )

    def forward(self, x: Tensor, documents: Tensor, weights: Tensor) -> Tensor:
        """Return hidden states [rows, seq, hidden] without a `head`; with one what it gives.

        x: token ids [rows, seq] with an `embed`, else hidden states.
        documents: [rows, seq], padding has a number of its own. Before padding, causal attention needs none.
        weights: [rows, 1, seq], of each token in the text's embedding.
        """
        if self.embed is not None and self.places is not None:
            x = self.embed(x) + self.places(torch.arange(documents.shape[1], device=documents.device)[None])
        mask = None
        if not self.causal:
            mask = attention_mask(
                documents.shape[1],
                causal=False,
                documents=documents,
                window=0,
                dtype=x.dtype,
                device=x.device,
            )
        shared = Shared(None, mask, causal=self.causal)
        for block in self.layers.values():
            x = block(x, shared)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.head is None else self.head(x, weights)
