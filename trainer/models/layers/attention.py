"""Grouped-query self-attention: causal or not, by document, with or without a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.layers.linear import Linear
from trainer.models.layers.masks import additive, compiled_once, within
from trainer.models.layers.norm import RMSNorm
from trainer.models.layers.shared import Shared

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class LayerCache:
    """Keys and values of one layer's past tokens, each [batch, places, kv_heads, head_dim].

    limit: the most tokens of a row.
    window: a token attends to those fewer than so many places away; 0: to all. With one, the cache has at
        most 2 · window places: what no later token sees is dropped when they are full.

    Attributes: `length`, tokens so far, those that were dropped included.
    """

    def __init__(self, limit: int, window: int = 0) -> None:
        self.length = 0
        self._seen = min(limit, window - 1) if window else limit  # by the next token
        self._places = min(limit, 2 * window) if window else limit
        self._held = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, new, kv_heads, head_dim]; return those and what they may see before them."""
        if self._keys is None or self._values is None:
            shape = (keys.shape[0], self._places, *keys.shape[2:])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        first, end = max(0, self._held - self._seen), self._held + keys.shape[1]
        self.length += keys.shape[1]
        if end <= self._places:
            self._keys[:, self._held : end], self._values[:, self._held : end] = keys, values
            self._held = end
            return self._keys[:, first:end], self._values[:, first:end]
        assert self._seen < self._places, "more tokens than the cache's limit"
        keys = torch.cat((self._keys[:, first : self._held], keys), dim=1)
        values = torch.cat((self._values[:, first : self._held], values), dim=1)
        self._held = min(self._seen, keys.shape[1])
        dropped = keys.shape[1] - self._held
        self._keys[:, : self._held], self._values[:, : self._held] = keys[:, dropped:], values[:, dropped:]
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch alone, int64 [rows]."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[rows], self._values[rows]


class KVCache:
    """Keys and values of all layers' past tokens, at most `limit` a row: for decoding token by token."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._layers: dict[str, LayerCache] = {}

    @property
    def length(self) -> int:
        """Tokens cached so far, by the first layer: between forwards all layers have cached as many."""
        return next(iter(self._layers.values())).length if self._layers else 0

    def layer(self, key: str, window: int = 0) -> LayerCache:
        """Return a layer's; `window`: as of `LayerCache`."""
        if key not in self._layers:
            self._layers[key] = LayerCache(self.limit, window)
        return self._layers[key]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch alone, int64 [rows]."""
        for layer in self._layers.values():
            layer.keep(rows)


class AttentionCore(nn.Module):
    """`attend` as a module, so that a `ModelPlan` can name it: style "attention_core".

    It gets whole sequences, of all heads or some: so the views of a row are told apart here.
    """

    def __init__(self, softcap: float) -> None:
        super().__init__()
        self.softcap = softcap

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | BlockMask | None,
        causal: bool = True,
        views: int = 1,
    ) -> Tensor:
        if views > 1:
            q, k, v = (t.unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        y = attend(q, k, v, mask, causal=causal, softcap=self.softcap)
        return y.unflatten(0, (-1, views)).transpose(1, 2).flatten(2, 3) if views > 1 else y


class Attention(nn.Module):
    """softmax(q kᵀ / √head_dim) v with fewer key-value heads than query heads (Ainslie et al. 2023,
    arXiv:2305.13245). [batch, seq, hidden] → the same.

    hidden: width of input and output.
    heads: query heads.
    head_dim: width of a head.
    kv_heads: key-value heads.
    qk_norm_eps: normalise queries and keys, head by head, with this epsilon; None: do not.
    bias: whether the projections to queries, keys and values have biases.
    output_bias: whether the projection after attention has one.
    softcap: see `attend`.

    The number of heads follows from the projections' outputs: with projections that hold a part of the heads
    (tensor parallelism), this is attention over that part.
    """

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        head_dim: int,
        kv_heads: int,
        qk_norm_eps: float | None,
        bias: bool = False,
        output_bias: bool = False,
        softcap: float = 0.0,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wq = Linear(hidden, heads * head_dim, bias=bias)
        self.wk = Linear(hidden, kv_heads * head_dim, bias=bias)
        self.wv = Linear(hidden, kv_heads * head_dim, bias=bias)
        self.wo = Linear(heads * head_dim, hidden, bias=output_bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.core = AttentionCore(softcap)

    def forward(self, x: Tensor, shared: Shared, past: LayerCache | None = None) -> Tensor:
        batch, seq, _ = x.shape
        q = self.wq(x).view(batch, seq, -1, self.head_dim)
        k = self.wk(x).view(batch, seq, -1, self.head_dim)
        v = self.wv(x).view(batch, seq, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if shared.rotary is not None:
            q, k = rotate(q, *shared.rotary), rotate(k, *shared.rotary)
        if past is not None:
            k, v = past.extend(k, v)
        heads = (t.transpose(1, 2) for t in (q, k, v))
        y = self.core(*heads, shared.mask, shared.causal, shared.views)
        return self.wo(y.transpose(1, 2).reshape(batch, seq, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature pairs (i, i + head_dim/2) of x [batch, seq, heads, head_dim], in float32.

    (a, b) → (a cos - b sin, b cos + a sin). The pairing is GPT-NeoX's and Hugging Face Llama's, so weights
    need no permutation on export.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | BlockMask | None,
    *,
    causal: bool = True,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of q [batch, heads, seq, head_dim] over k, v [batch, kv_heads, keys, head_dim] → q's shape.

    mask: as in `layers.shared.Shared`.
    causal: without a mask, a query attends to keys up to its own place; else to all, as a single query does
        (decoding).
    softcap: scores s become softcap · tanh(s / softcap); 0: they do not.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask is not None and not isinstance(mask, Tensor):
        return _flex_attention(q, k, v, softcap, block_mask=mask, enable_gqa=grouped)
    if softcap:
        return _capped(q, k, v, mask, causal, softcap)
    if grouped and q.is_cuda and q.dtype == torch.float32:
        # The one CUDA kernel for float32 that does not hold all scores takes as many keys as queries.
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        grouped = False
    causal = causal and mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, softcap: float) -> Tensor:
    """`attend` with a soft cap, holding all scores: on a CPU, and for decoding."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    scores = torch.tanh(scores / softcap) * softcap
    if causal and mask is None and q.shape[2] > 1:
        seen = within(torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device))
        mask = additive(seen, scores.dtype)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, softcap: float, **kwargs: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    score_mod = capped if softcap else None
    # Uncompiled, FlexAttention holds the full score matrix: correct, but for tests on a CPU only. Inside a
    # compiled block it is compiled with the block.
    if q.is_cuda and not torch.compiler.is_compiling():
        return compiled_once(flex_attention)(q, k, v, score_mod, **kwargs)
    return flex_attention(q, k, v, score_mod, **kwargs)
