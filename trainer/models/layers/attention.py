"""Grouped-query self-attention with rotary positions: causal, by document, with or without a cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear
from trainer.models.layers.norm import RMSNorm
from trainer.models.layers.shared import Shared

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class LayerCache:
    """Keys and values of one layer's past tokens, each [batch, limit, kv_heads, head_dim]."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, new, kv_heads, head_dim]; return everything so far."""
        if self._keys is None or self._values is None:
            shape = (keys.shape[0], self.limit, *keys.shape[2:])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        start, self.length = self.length, self.length + keys.shape[1]
        self._keys[:, start : self.length] = keys
        self._values[:, start : self.length] = values
        return self._keys[:, : self.length], self._values[:, : self.length]


class KVCache:
    """Keys and values of all layers' past tokens, at most `limit` a row: for decoding token by token."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._layers: dict[str, LayerCache] = {}

    @property
    def length(self) -> int:
        """Tokens cached so far, by the first layer: between forwards all layers have cached as many."""
        return next(iter(self._layers.values())).length if self._layers else 0

    def layer(self, key: str) -> LayerCache:
        return self._layers.setdefault(key, LayerCache(self.limit))


class AttentionCore(nn.Module):
    """`attend` as a module, so that a `ModelPlan` can name it: style "attention_core"."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        return attend(q, k, v, mask)


class Attention(nn.Module):
    """softmax(q kᵀ / √head_dim) v with fewer key-value heads than query heads (Ainslie et al. 2023,
    arXiv:2305.13245). [batch, seq, hidden] → the same.

    hidden: width; heads · head_dim.
    head_dim: width of a head.
    kv_heads: key-value heads.
    qk_norm_eps: normalise queries and keys, head by head, with this epsilon; None: do not.

    The number of heads follows from the projections' outputs: with projections that hold a part of the heads
    (tensor parallelism), this is attention over that part.
    """

    def __init__(self, *, hidden: int, head_dim: int, kv_heads: int, qk_norm_eps: float | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wq = Linear(hidden, hidden, bias=False)
        self.wk = Linear(hidden, kv_heads * head_dim, bias=False)
        self.wv = Linear(hidden, kv_heads * head_dim, bias=False)
        self.wo = Linear(hidden, hidden, bias=False)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.core = AttentionCore()

    def forward(self, x: Tensor, shared: Shared, past: LayerCache | None = None) -> Tensor:
        batch, seq, _ = x.shape
        q = self.wq(x).view(batch, seq, -1, self.head_dim)
        k = self.wk(x).view(batch, seq, -1, self.head_dim)
        v = self.wv(x).view(batch, seq, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *shared.rotary), rotate(k, *shared.rotary)
        if past is not None:
            k, v = past.extend(k, v)
        y = self.core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), shared.mask)
        return self.wo(y.transpose(1, 2).reshape(batch, seq, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature pairs (i, i + head_dim/2) of x [batch, seq, heads, head_dim], in float32.

    (a, b) → (a cos - b sin, b cos + a sin). The pairing is GPT-NeoX's and Hugging Face Llama's, so weights
    need no permutation on export.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
    """Attention of q [batch, heads, seq, head_dim] over k, v [batch, kv_heads, keys, head_dim] → q's shape.

    Without a mask attention is causal; a single query (decoding) attends to every key.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask is None or isinstance(mask, Tensor):
        if grouped and q.is_cuda and q.dtype == torch.float32:
            # The one CUDA kernel for float32 that does not hold all scores takes as many keys as queries.
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
            grouped = False
        causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return _flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)


def document_mask(documents: Tensor, dtype: torch.dtype) -> Tensor | BlockMask:
    """Return the mask of causal attention inside each document.

    documents: [batch, seq]; tokens with equal numbers are of one document.

    On CUDA a block mask, so that FlexAttention skips the blocks between documents (Dong et al. 2024,
    arXiv:2412.05496); elsewhere an additive mask [batch, 1, seq, seq] in `dtype`, made once for all layers.
    """
    if documents.is_cuda:
        return document_block_mask(documents)
    seq = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    seen = same & torch.ones(seq, seq, dtype=torch.bool, device=documents.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=documents.device).masked_fill_(~seen, float("-inf"))


def document_block_mask(documents: Tensor) -> BlockMask:
    """Return the same mask for FlexAttention. It is made once a micro-batch, for all blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    batch, seq = documents.shape
    # Uncompiled, `create_block_mask` holds all batch · seq² values of `visible` at once.
    make = _compiled(create_block_mask) if documents.is_cuda else create_block_mask
    return make(visible, batch, None, seq, seq, device=documents.device)


def resumed_mask(new: int, past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive causal mask [new, past + new] of `new` > 1 tokens after `past` cached ones."""
    seen = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def _flex_attention(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, FlexAttention holds the full score matrix: correct, but for tests on a CPU only. Inside a
    # compiled block it is compiled with the block.
    if q.is_cuda and not torch.compiler.is_compiling():
        return _compiled(flex_attention)(q, *args, **kwargs)
    return flex_attention(q, *args, **kwargs)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled form for all blocks and models of the process; shapes are fixed, as training's are."""
    return torch.compile(function, dynamic=False)
