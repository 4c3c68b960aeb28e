"""One pre-norm transformer block without masks."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.models.layers.attention import Attention
from trainer.models.layers.feed_forward import FeedForward
from trainer.models.layers.norm import norm
from trainer.models.layers.shared import Shared


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x), all with biases. [batch, seq, hidden] → the same.

    hidden: width.
    heads: attention heads.
    ffn_hidden: width of the feed-forward layer.
    activation: see `FeedForward`.
    norm_eps: of both LayerNorms.
    """

    def __init__(self, *, hidden: int, heads: int, ffn_hidden: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = norm("layer", hidden, norm_eps)
        self.attention = Attention(
            hidden=hidden,
            heads=heads,
            head_dim=hidden // heads,
            kv_heads=heads,
            qk_norm_eps=None,
            bias=True,
            output_bias=True,
        )
        self.mlp_norm = norm("layer", hidden, norm_eps)
        self.mlp = FeedForward(hidden, ffn_hidden, activation, gated=False, bias=True)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        x = x + self.attention(self.attention_norm(x), shared)
        return x + self.mlp(self.mlp_norm(x))
