"""Law 3: a loss is a sum over a count, so cutting a batch changes nothing."""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import IGNORED
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.objectives.causal_lm import CausalLM

VOCAB = 31


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (4, 12), generator=generator)
    following = torch.randint(VOCAB, (4, 12), generator=generator)
    for row, length in enumerate(
        (12, 1, 5, 0)
    ):  # uneven: a mean of means would differ; one row counts nothing
        following[row, length:] = -1
    return {"tokens": tokens, "following": following}


def summed(model: Decoder, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    inputs = CausalLM().inputs(tensors, tuple(range(len(tensors["tokens"]))))
    losses, counts = CausalLM().loss(model(inputs.x, **inputs.kwargs), inputs)
    assert losses.shape == counts.shape == (len(tensors["tokens"]),)
    assert counts.tolist() == [(row >= 0).sum() for row in tensors["following"]]
    return losses.sum(), counts.sum()


def test_the_loss_is_cross_entropy_over_the_targets_that_count() -> None:
    torch.manual_seed(0)
    model, tensors = Decoder(DecoderConfig(layers=1, hidden=16, heads=2, vocab=VOCAB)), batch()
    total, count = summed(model, tensors)
    logits = model(tensors["tokens"]).flatten(0, 1)
    expected = F.cross_entropy(logits, tensors["following"].flatten(), ignore_index=-1)
    assert (total.dtype, count.dtype, total.shape, count.shape) == (torch.float32, torch.float32, (), ())
    assert count == 18
    assert torch.allclose(total / count, expected)


def test_sums_and_counts_of_micro_batches_add_up() -> None:
    torch.manual_seed(0)
    model, tensors = Decoder(DecoderConfig(layers=1, hidden=16, heads=2, vocab=VOCAB)), batch()
    whole = torch.stack(summed(model, tensors))
    parts = [
        torch.stack(summed(model, {name: t[row : row + 1] for name, t in tensors.items()}))
        for row in range(4)
    ]
    assert torch.allclose(torch.stack(parts).sum(0), whole)
    means = [part[0] / part[1] for part in parts if part[1]]
    assert not torch.allclose(torch.stack(means).mean(), whole[0] / whole[1], rtol=1e-3)


def test_documents_and_positions_reach_the_model() -> None:
    tensors = batch() | {name: torch.zeros(4, 12) for name in ("documents", "positions", "source")}
    inputs = CausalLM().inputs(tensors, (0, 1, 2, 3))
    assert inputs.x is tensors["tokens"]
    assert set(inputs.kwargs) == {"targets", "documents", "positions"}


def test_a_target_is_what_follows_and_is_ignored_where_nothing_does() -> None:
    tensors = batch()
    before = tensors["following"].clone()
    targets = CausalLM().inputs(tensors, (0, 1, 2, 3)).kwargs["targets"]
    assert torch.equal(tensors["following"], before), "the batch is not to be written to"
    assert torch.equal(targets[before >= 0], before[before >= 0])
    assert (targets[before < 0] == IGNORED).all() and (before < 0).any()
