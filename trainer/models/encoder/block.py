"""One block of an encoder."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.encoder.config import EncoderConfig
from trainer.models.layers.attention import Attention
from trainer.models.layers.feed_forward import FeedForward
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import Shared


class Block(nn.Module):
    """Attention and feed-forward layer, each added to x. [batch, seq, hidden] → the same.

    pre: x + attention(norm x), then x + mlp(norm x). The first block's attention takes x as it is, since the
        embeddings are normalised.
    post: norm(x + attention(x)), then norm(x + mlp(x)).
    """

    def __init__(self, cfg: EncoderConfig, *, first: bool) -> None:
        super().__init__()
        self.pre = cfg.norm_place == "pre"
        normalised = self.pre and first
        self.attention_norm = None if normalised else norm(cfg.norm, cfg.hidden, cfg.norm_eps, cfg.biases)
        self.attention = Attention(
            hidden=cfg.hidden,
            heads=cfg.heads,
            head_dim=cfg.head_width,
            kv_heads=cfg.heads,
            qk_norm_eps=None,
            bias=cfg.biases,
            output_bias=cfg.biases,
        )
        self.mlp_norm = norm(cfg.norm, cfg.hidden, cfg.norm_eps, cfg.biases)
        self.mlp = FeedForward(cfg.hidden, cfg.ffn_width, cfg.activation, gated=cfg.is_gated, bias=cfg.biases)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        if self.pre:
            x = x + self.attention(x if self.attention_norm is None else self.attention_norm(x), shared)
            return x + self.mlp(self.mlp_norm(x))
        assert self.attention_norm is not None
        x = self.attention_norm(x + self.attention(x, shared))
        return self.mlp_norm(x + self.mlp(x))
