"""Sampling: the cache, the context, temperature, top-p, the seed and the end."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from trained_runs import drawn, model_config
from trainer.generate.sampling import generate, sample
from trainer.models.decoder.decoder import Decoder


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
        list(generate(model, [0], max_tokens=30, context=64, temperature=0, stop=stop))
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
