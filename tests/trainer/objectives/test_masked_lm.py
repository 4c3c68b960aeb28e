"""Masked tokens: which are predicted, what stands in their place, and that layout and batches do not show."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from common.objective import IGNORED, Measures, ModelInputs
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.masked.masked_lm import MaskedLM

EOS, PIECES, VOCAB = 0, 40, 43
SPECIAL = {"<eos>": 0, "[CLS]": 41, "[MASK]": 42}


def tokenizer() -> bytes:
    """Pieces p1 … p20 begin words, ##p21 … ##p40 go on with them."""
    names = {f"p{n}" if n <= 20 else f"##p{n}": n for n in range(1, PIECES + 1)}
    added = [
        {
            "id": n,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for name, n in SPECIAL.items()
    ]
    model = {"type": "WordPiece", "unk_token": "<eos>", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": names | SPECIAL}
    special = [one | {"special": True} for one in added]
    return json.dumps({"version": "1.0", "added_tokens": special, "model": model}).encode()


def objective(seq: int = 64, seed: int = 0, tokens: Any = tokenizer, **keys: Any) -> MaskedLM:
    context = ObjectiveContext(seed, seq, VOCAB, EOS, tokens)
    built = build_objective(MaskedLMConfig(**keys), context)
    assert isinstance(built, MaskedLM) and isinstance(built, Measures)
    return built


def batch(rows: int, seq: int = 64, *, whole: bool = False) -> dict[str, Tensor]:
    """Rows of text with separators in it; padding behind some of them unless `whole`."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, PIECES + 1, (rows, seq), generator=draw)
    tokens[torch.rand(rows, seq, generator=draw) < 0.05] = EOS
    tokens[:, 0] = EOS
    following = tokens.roll(-1, 1)
    following[:, -1] = 5
    if not whole:
        lengths = torch.randint(0, seq + 1, (rows, 1), generator=draw)
        padding = torch.arange(seq) >= lengths
        tokens, following = tokens.masked_fill(padding, EOS), following.masked_fill(padding, -1)
    return {"tokens": tokens, "following": following}


def fed(one: MaskedLM, tensors: dict[str, Tensor], first: int = 0) -> ModelInputs:
    return one.inputs(tensors, tuple(range(first, first + len(tensors["tokens"]))))


def chosen_of(inputs: ModelInputs) -> Tensor:
    """Which tokens are predicted, bool [rows, seq]."""
    places, seq = inputs.kwargs["places"], inputs.x.shape[1]
    return (places[:, :, None] == torch.arange(seq)).any(dim=1)


@pytest.mark.parametrize("keys", [{}, {"mask_rate": 0.3}, {"mask_share": 0.5, "random_share": 0.25}])
def test_rates_are_what_is_asked_within_a_hundredth(keys: dict[str, Any]) -> None:
    one, tensors = objective(**keys), batch(20000)
    cfg, inputs = MaskedLMConfig(**keys), fed(one, tensors)
    text = (tensors["tokens"] > 0) & (tensors["following"] >= 0)
    chosen = chosen_of(inputs)
    assert float(chosen.sum() / text.sum()) == pytest.approx(cfg.mask_rate, rel=0.01)
    shown, told = inputs.x[chosen], tensors["tokens"][chosen]
    masks = (shown == SPECIAL["[MASK]"]).double()
    assert float(masks.mean()) == pytest.approx(cfg.mask_share, rel=0.01)
    # Every place and every token of text is as likely as another.
    rate, seen = cfg.mask_rate, text[:, 1:].sum(0)
    off = chosen[:, 1:].sum(0) - rate * seen
    assert float((off / (rate * (1 - rate) * seen) ** 0.5).abs().max()) < 4.5
    put = torch.bincount(shown[(shown != 42) & (shown != told)], minlength=VOCAB)
    assert put[EOS] == put[41] == put[42] == 0 and int(put[1:41].min()) > 0.85 * float(
        put[1:41].double().mean()
    )


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.25)])
def test_masked_random_and_kept_targets_are_as_many_as_asked(shares: tuple[float, float]) -> None:
    """Each share within a hundredth of itself, over 700,000 targets: every token is one."""
    mask, random = shares
    tensors = batch(12_000, whole=True)
    inputs = fed(objective(mask_rate=1.0, mask_share=mask, random_share=random), tensors)
    text = tensors["tokens"] > 0
    assert int(text.sum()) > 700_000
    shown, told = inputs.x[text], tensors["tokens"][text]
    is_mask, same = shown == SPECIAL["[MASK]"], shown == told
    by_chance = random / PIECES  # a random token that is the true one
    found = [float(one.double().mean()) for one in (is_mask, ~is_mask & ~same, same)]
    expected = [mask, random - by_chance, 1 - mask - random + by_chance]
    for share, wanted in zip(found, expected):
        assert share == pytest.approx(wanted, rel=0.01)


def test_what_is_not_text_is_left_alone_and_targets_are_the_tokens() -> None:
    one, tensors = objective(), batch(500)
    inputs = fed(one, tensors)
    chosen = chosen_of(inputs)
    assert chosen.any() and not chosen[(tensors["tokens"] == EOS) | (tensors["following"] < 0)].any()
    assert torch.equal(inputs.x[~chosen], tensors["tokens"][~chosen])
    places, targets = inputs.kwargs["places"], inputs.kwargs["targets"]
    assert places.shape == targets.shape == (500, one.slots(64)) == (500, 10)
    assert torch.equal(targets == IGNORED, places < 0)
    assert torch.equal(targets[places >= 0], tensors["tokens"][chosen])
    padding = torch.arange(64) >= (torch.arange(1, 65) * (tensors["following"] >= 0)).amax(1)[:, None]
    assert torch.equal(inputs.kwargs["documents"], padding.long())
    losses, counts = one.loss(torch.ones(500), inputs)
    assert counts.dtype == torch.float32 and torch.equal(counts, chosen.sum(1).float())
    assert torch.equal(losses, torch.ones(500))


@pytest.mark.parametrize("keys", [{}, {"whole_words": True}, {"next_sentence": True}])
def test_a_row_is_the_same_in_every_batch_and_another_under_another_number(keys: dict[str, Any]) -> None:
    one, tensors = objective(**keys), batch(32)
    tensors |= {
        f"partner{end}": tensors[name].flip(0) for end, name in (("", "tokens"), ("_following", "following"))
    }
    whole = fed(one, tensors, first=100)
    for size in (1, 8):
        cut = [{n: t[i : i + size] for n, t in tensors.items()} for i in range(0, 32, size)]
        parts = [fed(objective(**keys), part, 100 + size * i) for i, part in enumerate(cut)]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        for name, tensor in whole.kwargs.items():
            assert torch.equal(torch.cat([part.kwargs[name] for part in parts]), tensor), name
    for other in (fed(one, tensors, first=5000), fed(objective(seed=1, **keys), tensors, first=100)):
        assert not torch.equal(other.x, whole.x)


def test_words_are_predicted_as_a_whole() -> None:
    one, tensors = objective(whole_words=True), batch(20000)
    chosen = chosen_of(fed(one, tensors))
    tokens, text = tensors["tokens"], (tensors["tokens"] > 0) & (tensors["following"] >= 0)
    goes_on = (tokens[:, 1:] > 20) & text[:, 1:] & text[:, :-1]
    assert torch.equal(chosen[:, 1:][goes_on], chosen[:, :-1][goes_on])
    assert not objective_parts_words(tensors, goes_on)
    assert float(chosen.sum() / text.sum()) == pytest.approx(0.15, rel=0.01)
    # As many as without words, but for what no word fills.
    counts, wanted = chosen.sum(1), chosen_of(fed(objective(), tensors)).sum(1)
    assert bool((counts <= wanted).all()) and float((counts < wanted).double().mean()) < 0.05


def objective_parts_words(tensors: dict[str, Tensor], goes_on: Tensor) -> bool:
    """Whether choosing token by token parts no word, which a test of whole words would then not tell."""
    chosen = chosen_of(fed(objective(), tensors))
    return torch.equal(chosen[:, 1:][goes_on], chosen[:, :-1][goes_on])


def test_words_are_taken_one_after_another_where_they_fit() -> None:
    """Against the loop over words that is published with BERT."""
    one, tensors = objective(whole_words=True), batch(300)
    sequences = torch.arange(300)
    chosen, text = chosen_of(fed(one, tensors)), (tensors["tokens"] > 0) & (tensors["following"] >= 0)
    wanted = chosen_of(fed(objective(), tensors)).sum(1)  # the counts are drawn alike
    for row in range(300):
        words: list[list[int]] = []
        for place in range(64):
            if not text[row, place]:
                continue
            if words and tensors["tokens"][row, place] > 20 and text[row, place - 1]:
                words[-1].append(place)
            else:
                words.append([place])
        has = torch.arange(64)[None] < len(words)
        ranks = one._places.ranks(sequences[row : row + 1], 64, among=has)[0]
        taken: list[int] = []
        for word in sorted(range(len(words)), key=lambda number: int(ranks[number])):
            if len(taken) + len(words[word]) <= wanted[row]:
                taken += words[word]
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(taken)


def test_a_tokenizer_without_a_mask_gets_one_beyond_its_ids() -> None:
    one = objective(tokens=lambda: b"")
    inputs = fed(one, batch(50))
    assert int(inputs.x.max()) == VOCAB
    context = ObjectiveContext(0, 64, VOCAB, EOS, lambda: b"")
    assert "set model.vocab to at least 44" in context.too_small(43, MaskedLMConfig())
    assert "set model.vocab to at least 45" in context.too_small(43, MaskedLMConfig(next_sentence=True))


def test_context_of_a_heldout_window_is_seen_and_not_predicted() -> None:
    tensors = batch(200, whole=True)
    tensors["following"][:, :10] = -1
    inputs = fed(objective(mask_rate=1.0), tensors)
    chosen = chosen_of(inputs)
    assert not chosen[:, :10].any() and torch.equal(chosen[:, 10:], tensors["tokens"][:, 10:] > 0)
    assert not inputs.kwargs["documents"].any()


def test_documents_and_positions_of_the_batch_are_kept() -> None:
    tensors = batch(4)
    tensors |= {
        "documents": torch.arange(64).expand(4, -1) // 7,
        "positions": torch.arange(64).expand(4, -1) % 7,
    }
    inputs = fed(objective(), tensors)
    for name in ("documents", "positions"):
        assert torch.equal(inputs.kwargs[name], tensors[name])
    assert dict(inputs.sequence_dims) == {"positions": 1} and inputs.places == {"places"}


def test_accuracy_is_summed_over_the_targets_that_are_here() -> None:
    one, inputs = objective(), fed(objective(), batch(6))
    assert one.measures == ("masked_accuracy",)
    counts = one.loss(torch.zeros(6, 2), inputs)[1]
    found = one.measure(torch.tensor([[9.0, n] for n in range(6)]), inputs)
    assert found.tolist() == [[15.0, float(counts.sum())]]
    assert torch.equal(one.loss(torch.tensor([[9.0, 2.0]] * 6), inputs)[0], torch.full((6,), 9.0))
