"""Attention in both directions: by document, within a window, view by view."""

import pytest
import torch
from torch import Tensor

from trainer.models.layers.attention import Attention, AttentionCore, attend
from trainer.models.layers.masks import attention_block_mask, attention_mask
from trainer.models.layers.shared import RotaryTables, Shared

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 10 + [2] * 5, [0] * 20])


def heads(batch: int = 2, seq: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, n, seq, 8, generator=draw, dtype=torch.float64) for n in (4, 2, 2))
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)


@pytest.mark.parametrize("window", [0, 1, 4, 30])
@pytest.mark.parametrize("by_document", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1e6])
def test_both_directions_are_the_formula(window: int, by_document: bool, softcap: float) -> None:
    documents = DOCUMENTS if by_document else None
    away = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    seen = (away < (window or 20)).expand(2, 1, 20, 20)
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    mask = attention_mask(
        20, causal=False, documents=documents, window=window, dtype=torch.float64, device=torch.device("cpu")
    )
    assert (mask is None) == (window in (0, 30) and not by_document)
    q, k, v = heads()
    found = attend(q, k, v, mask, causal=False, softcap=softcap)
    assert torch.allclose(found, by_hand(q, k, v, seen), rtol=1e-6)
    assert not torch.allclose(attend(q, k, v, None), found, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("by_document", [False, True])
def test_the_block_mask_of_both_directions_is_the_additive_mask(window: int, by_document: bool) -> None:
    documents = DOCUMENTS.repeat_interleave(10, 1) if by_document else None
    q, k, v = (t.float() for t in heads(seq=200))
    mask = attention_mask(
        200, causal=False, documents=documents, window=window, dtype=q.dtype, device=q.device
    )
    block = attention_block_mask(200, documents, window, q.device, causal=False)
    dense = attend(q, k, v, mask, causal=False)
    assert torch.allclose(attend(q, k, v, block), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_views_of_a_row_are_computed_as_rows(causal: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(hidden=16, heads=4, head_dim=4, kv_heads=2, qk_norm_eps=None)
    x = torch.randn(3, 24, 16)
    cos, sin = RotaryTables(4, 10000.0).upto(8, x.device)
    three = Shared((cos.repeat(3, 1, 1), sin.repeat(3, 1, 1)), causal=causal, views=3)
    expected = layer(x.view(9, 8, 16), Shared((cos, sin), causal=causal)).view(3, 24, 16)
    assert torch.allclose(layer(x, three), expected, atol=1e-6)
    documents = (torch.arange(24) % 8 // 3).expand(3, -1).reshape(9, 8)
    mask = attention_mask(8, causal=causal, documents=documents, window=0, dtype=x.dtype, device=x.device)
    expected = layer(x.view(9, 8, 16), Shared((cos, sin), mask)).view(3, 24, 16)
    assert torch.allclose(layer(x, Shared(three.rotary, mask, views=3)), expected, atol=1e-6)


def test_views_that_saw_each_other_would_be_seen() -> None:
    q, k, v = heads()
    core = AttentionCore(0.0)
    assert not torch.allclose(core(q, k, v, None, False, 2), core(q, k, v, None, False), rtol=1e-3)
