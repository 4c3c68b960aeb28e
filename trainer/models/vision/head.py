"""What a vision transformer's hidden states become: classes, an embedding, or the pixels of some patches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.feed_forward import FeedForward
from trainer.models.layers.linear import Linear
from trainer.models.layers.norm import norm


class AttentionPool(nn.Module):
    """One learnt query that attends to all positions, then a feed-forward layer: [batch, seq, hidden] →
    [batch, hidden] (Zhai et al. 2021, arXiv:2106.04560, section 3.2; SigLIP's pooling).

    hidden: width.
    heads: attention heads.
    ffn_hidden: width of the feed-forward layer.
    activation: see `FeedForward`.
    norm_eps: of the LayerNorm before the feed-forward layer.
    """

    def __init__(self, *, hidden: int, heads: int, ffn_hidden: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, hidden))
        if not self.query.is_meta:
            nn.init.normal_(self.query, std=0.02)
        self.wq, self.wk, self.wv, self.wo = (Linear(hidden, hidden) for _ in range(4))
        self.mlp_norm = norm("layer", hidden, norm_eps)
        self.mlp = FeedForward(hidden, ffn_hidden, activation, gated=False, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        # A copy: ZeRO-3 frees a parameter's own memory before a schedule that splits backward needs it again.
        query = self.query.repeat(len(x), 1, 1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.wq(query), self.wk(x), self.wv(x))
        )
        y = self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))
        return y + self.mlp(self.mlp_norm(y))


class PooledHead(nn.Module):
    """Pooling, then linear layers with GELU between: [batch, views · positions, hidden] → float
    [batch, views · features].

    pool: "class": the first position; "mean": over all positions from `prefix` on; "attention": see
        `AttentionPool`, the argument `attention`.
    widths: of the hidden states, of the layers between, and of the result; one width alone: no layer.
    prefix: positions of a picture before its patches.
    bias: whether the last layer has one.
    attention: what pools with "attention".
    """

    def __init__(
        self,
        pool: str,
        widths: Sequence[int],
        *,
        prefix: int,
        bias: bool,
        attention: AttentionPool | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.prefix = pool, prefix
        self.pool = attention
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(
            Linear(inner, outer, bias=bias or number + 1 < len(pairs))
            for number, (inner, outer) in enumerate(pairs)
        )

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        x = x.unflatten(1, (views, -1)).flatten(0, 1)
        if self.pool is not None:
            pooled = self.pool(x)
        else:
            pooled = x[:, 0] if self.kind == "class" else x[:, self.prefix :].mean(dim=1)
        for number, layer in enumerate(self.layers):
            pooled = layer(pooled if number == 0 else F.gelu(pooled))
        return pooled.unflatten(0, (-1, views)).flatten(1).to(torch.promote_types(x.dtype, torch.float32))


class PixelHead(nn.Module):
    """A linear layer at some places: [batch, seq, hidden] → float [batch, places · values], as in SimMIM (Xie
    et al. 2021, arXiv:2111.09886).

    hidden: width of the hidden states.
    values: values of a patch.
    """

    def __init__(self, hidden: int, values: int) -> None:
        super().__init__()
        self.project = Linear(hidden, values)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """places: [batch, places] in the sequence; where it is negative the result has no meaning."""
        picked = x.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        return self.project(picked).flatten(1).to(torch.promote_types(x.dtype, torch.float32))
