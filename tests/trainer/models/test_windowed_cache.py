"""With a sliding window the cache of keys and values takes memory of the window, however long a text is."""

from typing import Any

import pytest
import torch

from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache, LayerCache

SIZES: dict[str, Any] = {"layers": 3, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn_hidden": 48, "vocab": 40}


def places(cache: LayerCache) -> int:
    assert cache._keys is not None and cache._values is not None
    assert cache._keys.shape == cache._values.shape
    return cache._keys.shape[1]


@pytest.mark.parametrize("window", [1, 3, 30])
@pytest.mark.parametrize("global_every", [0, 2])
@pytest.mark.parametrize("parts", [[1] * 40, [13, 1, 1, 9, *[1] * 16], [40]], ids=["ones", "mixed", "whole"])
@pytest.mark.parametrize("padded", [False, True])
def test_logits_are_those_of_the_whole_text(
    window: int, global_every: int, parts: list[int], padded: bool
) -> None:
    torch.manual_seed(0)
    model = build_model(DecoderConfig(**SIZES, window=window, global_every=global_every)).double().eval()
    tokens = torch.randint(40, (3, 40))
    padding = torch.tensor([0, 2, 11]) if padded else None
    cache = KVCache(40)
    with torch.inference_mode():
        found = torch.cat([model(one, cache=cache, padding=padding) for one in tokens.split(parts, 1)], 1)
        for row in range(3):
            first = 0 if padding is None else int(padding[row])
            expected = model(tokens[row : row + 1, first:])
            torch.testing.assert_close(found[row : row + 1, first:], expected, rtol=1e-9, atol=1e-9)
    assert cache.length == 40
    for layer in range(3):
        is_global = bool(global_every) and layer % global_every == 0
        assert places(cache.layer(str(layer))) == (40 if is_global else min(40, 2 * window))


def test_rows_that_are_kept_go_on() -> None:
    torch.manual_seed(0)
    model = build_model(DecoderConfig(**SIZES, window=3)).double().eval()
    tokens, cache = torch.randint(40, (3, 30)), KVCache(30)
    with torch.inference_mode():
        model(tokens[:, :20], cache=cache)
        cache.keep(torch.tensor([0, 2]))
        found = torch.cat([model(one, cache=cache) for one in tokens[[0, 2], 20:].split(1, 1)], 1)
        torch.testing.assert_close(found, model(tokens[[0, 2]])[:, 20:], rtol=1e-9, atol=1e-9)
