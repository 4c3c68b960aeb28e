"""One pre-norm transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import Attention, LayerCache
from trainer.models.layers.feed_forward import FeedForward
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import Shared


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). [batch, seq, hidden] → the same."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = norm(cfg.norm, cfg.hidden, cfg.norm_eps)
        self.attention = Attention(
            hidden=cfg.hidden,
            heads=cfg.heads,
            head_dim=cfg.head_width,
            kv_heads=cfg.key_value_heads,
            qk_norm_eps=cfg.norm_eps if cfg.qk_norm else None,
            bias=cfg.attention_bias != "none",
            output_bias=cfg.attention_bias == "all",
            softcap=cfg.attention_softcap,
        )
        self.mlp_norm = norm(cfg.norm, cfg.hidden, cfg.norm_eps)
        self.mlp = FeedForward(
            cfg.hidden, cfg.ffn_width, cfg.activation, gated=cfg.is_gated, bias=cfg.mlp_bias
        )

    def forward(self, x: Tensor, shared: Shared, past: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), shared, past)
        return x + self.mlp(self.mlp_norm(x))
