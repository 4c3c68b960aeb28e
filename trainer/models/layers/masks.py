"""Which tokens a token attends to, as a mask for attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def attention_mask(
    seq: int,
    *,
    causal: bool = True,
    documents: Tensor | None,
    window: int,
    prefix: Tensor | None = None,
    dtype: torch.dtype,
    device: torch.device,
    explicit: bool = False,
) -> Tensor | BlockMask | None:
    """Return the mask of attention; None where it is plainly causal or plainly to all tokens, which kernels
    know by themselves.

    seq: number of tokens.
    causal: whether a token attends to itself and those before it; else to those behind it too.
    documents: [batch, seq]; tokens with equal numbers are of one document, and attend to each other only.
        Padding is a document of its own. None: all are of one.
    window: a token attends to those fewer than so many places away, itself included; 0: however far.
    prefix: [batch], so many tokens at the beginning of a row attend to each other, though attention is
        causal. None: none do.
    dtype: of an additive mask.
    explicit: on CUDA return a mask where it is plain too.

    On CUDA a block mask, so that FlexAttention skips the blocks that nothing is seen of (Dong et al. 2024,
    arXiv:2412.05496); elsewhere an additive mask, broadcastable to [batch, heads, seq, seq].
    """
    window = 0 if window >= seq else window
    if documents is None and prefix is None and not window and not (explicit and device.type == "cuda"):
        return None
    if device.type == "cuda":
        return attention_block_mask(seq, documents, window, device, causal=causal, prefix=prefix)
    places = torch.arange(seq, device=device)
    seen = within(places, places, window, causal=causal)
    if prefix is not None:
        both = within(places, places, window, causal=False)
        seen = seen | (both & (places < prefix[:, None, None, None]))
    if documents is not None:
        seen = (documents[:, None, :, None] == documents[:, None, None, :]) & seen
    return additive(seen, dtype)


def attention_block_mask(
    seq: int,
    documents: Tensor | None,
    window: int,
    device: torch.device,
    *,
    causal: bool = True,
    prefix: Tensor | None = None,
) -> BlockMask:
    """Return the same mask for FlexAttention. It is made once a micro-batch, for all blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k if causal else q == q
        if prefix is not None:
            seen = seen | (k < prefix[b])
        if window:
            seen = seen & (q - k < window)
            if not causal or prefix is not None:
                seen = seen & (k - q < window)
        return seen if documents is None else seen & (documents[b, q] == documents[b, k])

    batch = next((len(given) for given in (documents, prefix) if given is not None), None)
    # Uncompiled, `create_block_mask` holds all batch · seq² values of `visible` at once.
    make = compiled_once(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(visible, batch, None, seq, seq, device=device)


def resumed_mask(new: int, past: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return the additive causal mask [new, past + new] of `new` tokens after `past` cached ones; None for a
    single one that attends to all.
    """
    if new == 1 and not 0 < window <= past:
        return None
    places = torch.arange(past + new, device=device)
    return additive(within(places[past:], places, window), dtype)


def padded_mask(new: int, past: int, window: int, padding: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive causal mask [batch, 1, new, past + new] of rows whose first `padding` [batch]
    tokens mean nothing: no other token attends to them. Negative: none do, and the cache has dropped some.
    """
    places = torch.arange(past + new, device=padding.device)
    seen = within(places[past:], places, window) & (places >= padding[:, None, None, None])
    # Padding attends to itself, or its softmax would be NaN.
    return additive(seen | (places[past:, None] == places), dtype)


def within(queries: Tensor, keys: Tensor, window: int = 0, *, causal: bool = True) -> Tensor:
    """Return whether each query sees each key, bool [queries, keys], of places in one sequence.

    window: a query sees keys fewer than so many places away, its own included; 0: however far.
    causal: whether it sees those up to its own place only.
    """
    behind = queries[:, None] - keys[None, :]
    if not causal:
        return behind.abs() < (window or keys.numel() + queries.numel())
    return (behind >= 0) & (behind < window) if window else behind >= 0


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `seen`, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@cache
def compiled_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled form for all blocks and models of the process; shapes are fixed, as training's are."""
    return torch.compile(function, dynamic=False)
