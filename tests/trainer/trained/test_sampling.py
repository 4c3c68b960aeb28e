"""Sampling: the cache, the context, temperature, top-p, the seed and the end."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trained_runs import drawn, model_config
from trainer.models.decoder.decoder import Decoder
from trainer.models.layers.attention import KVCache
from trainer.trained.sampling import generate, generate_many, sample


def uncached(model: Decoder, prompt: Sequence[int], count: int, context: int) -> list[int]:
    """The likeliest tokens by reading everything anew for each, with the same renewal of the context."""
    ids, seen = list(prompt), min(len(prompt), context)
    for _ in range(count):
        seen = context // 2 if seen > context else seen
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-seen:]]))[0, -1].argmax()))
        seen += 1
    return ids[len(prompt) :]


@pytest.mark.parametrize("context", [64, 16, 5])
@pytest.mark.parametrize("prompt", [[0], list(range(1, 12))])
def test_the_cache_changes_nothing(context: int, prompt: list[int]) -> None:
    model = drawn(model_config())
    got = list(generate(model, prompt, max_tokens=40, context=context, temperature=0))
    assert got == uncached(model, prompt, 40, context)
    assert len(set(got)) > 3


def test_a_seed_decides_and_the_vocabulary_bounds() -> None:
    model = drawn(model_config())

    def run(seed: int) -> list[int]:
        return list(generate(model, [0], max_tokens=60, context=32, temperature=2.0, seed=seed, vocab=9))

    assert run(1) == run(1) != run(2)
    assert max(run(1)) < 9


def test_generation_ends_at_the_stop_id() -> None:
    model = drawn(model_config())
    ids = list(generate(model, [0], max_tokens=30, context=64, temperature=0))
    stop = ids[7]
    assert (
        list(generate(model, [0], max_tokens=30, context=64, temperature=0, stop=[stop]))
        == ids[: ids.index(stop)]
    )


def drawn_shares(logits: Tensor, temperature: float, top_p: float, draws: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = [sample(logits, temperature, top_p, generator) for _ in range(draws)]
    return torch.bincount(torch.tensor(ids), minlength=len(logits)) / draws


def test_sampling_follows_temperature_and_top_p() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    logits = probabilities.log() + 3.0
    assert torch.allclose(drawn_shares(logits, 1.0, 1.0), probabilities, atol=0.03)
    assert torch.allclose(drawn_shares(logits, 0.5, 1.0), torch.softmax(2 * logits, 0), atol=0.03)
    assert torch.allclose(drawn_shares(logits, 1.0, 0.7), torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=0.03)
    assert torch.equal(drawn_shares(logits, 1.0, 0.01, 50), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert sample(logits, 0.0, 1.0, torch.Generator()) == 1


PROMPTS = [list(range(1, 12)), [0], [5, 9, 3], list(range(20, 60)), [7, 8]]


def in_order(found: Iterable[tuple[int, list[int]]]) -> list[list[int]]:
    return [ids for _, ids in sorted(found)]


@pytest.mark.parametrize("context", [64, 16, 5])
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.5])
@pytest.mark.parametrize("changes", [{}, {"window": 6, "global_every": 2, "positions": "learned"}], ids=str)
def test_many_at_once_are_each_alone(context: int, temperature: float, changes: dict[str, Any]) -> None:
    """In float64, where no rounding decides; some end by the separator, some by `ends`."""
    model = drawn(replace(model_config(), **changes)).double()
    asked: dict[str, Any] = {"max_tokens": 40, "context": context, "temperature": temperature, "seed": 3}
    alone = [list(generate(model, prompt, **asked)) for prompt in PROMPTS]
    assert in_order(generate_many(model, PROMPTS, **asked)) == alone
    stop = alone[0][6]
    ended = [list(generate(model, prompt, **asked, stop=[stop])) for prompt in PROMPTS]
    assert in_order(generate_many(model, PROMPTS, **asked, stop=[stop])) == ended
    assert len(ended[0]) < 7 and any(len(one) == 40 for one in ended)
    short = generate_many(model, PROMPTS, **asked, ends=lambda ids: len(ids) >= 4 + ids[0] % 3)
    assert in_order(short) == [one[: 4 + one[0] % 3] for one in alone]


def test_a_text_comes_when_it_ends_and_not_when_all_have() -> None:
    model, passes = drawn(model_config()), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = generate_many(
        model, [[1], [2], [3]], max_tokens=30, context=64, temperature=0, ends=lambda ids: ids[0] == wanted
    )
    wanted = next(generate(model, [2], max_tokens=1, context=64, temperature=0))
    passes.clear()
    assert next(found) == (1, [wanted]) and len(passes) == 1
    assert [number for number, _ in found] == [0, 2] and len(passes) == 30


def test_padding_is_seen_when_it_is_attended_to() -> None:
    model = drawn(model_config()).double()
    tokens = torch.tensor([[0, 0, 5, 9, 3]])
    with torch.no_grad():
        alone = model(tokens[:, 2:], cache=KVCache(8))[0, -1]
        padded = model(tokens, cache=KVCache(8), padding=torch.tensor([2]))[0, -1]
        wrong = model(tokens, cache=KVCache(8), padding=torch.tensor([1]))[0, -1]
    assert torch.allclose(alone, padded, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(alone, wrong, rtol=1e-2)
