"""Span corruption: T5's layout, its statistics, and equal for a sequence in any micro-batch."""

from itertools import groupby

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import IGNORED, ModelInputs
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.spans.config import SpanCorruptionConfig
from trainer.objectives.spans.span_corruption import SpanCorruption

EOS, VOCAB = 0, 1000
PARTS = (*(f"attention.{part}" for part in ("wq", "wk", "wv", "wo")), "mlp.w1", "mlp.w2", "mlp.w3")


def objective(seq: int, seed: int = 0, **keys: float) -> SpanCorruption:
    return SpanCorruption(SpanCorruptionConfig(**keys), ObjectiveContext(seed, seq, VOCAB, EOS, bytes))  # type: ignore[arg-type]


def batch(lengths: list[int], seq: int) -> dict[str, Tensor]:
    """Rows whose ids are all different, with so many inputs before the padding."""
    tokens = torch.full((len(lengths), seq), EOS)
    following = torch.full((len(lengths), seq), -1)
    for row, length in enumerate(lengths):
        ids = torch.arange(1, length + 2)
        tokens[row, :length], following[row, :length] = ids[:-1], ids[1:]
    return {"tokens": tokens, "following": following}


def made(seq: int, lengths: list[int], first: int = 0, **keys: float) -> ModelInputs:
    return objective(seq, **keys).inputs(batch(lengths, seq), tuple(range(first, first + len(lengths))))


def spans_of(inputs: ModelInputs, row: int, length: int) -> list[bool]:
    """Whether each token of the row's text is in a span, found in what is predicted."""
    predicted = set(inputs.kwargs["targets"][row].tolist())
    return [token in predicted for token in range(1, length + 1)]


def t5(text: list[int], noise: list[bool]) -> tuple[list[int], list[int]]:
    """(inputs, targets) of T5's preprocessing: each span becomes a sentinel of its own in the inputs, each
    stretch between spans one in the targets.
    """
    inputs: list[int] = []
    targets: list[int] = []
    sentinel = VOCAB
    for is_noise, group in groupby(zip(text, noise), key=lambda pair: pair[1]):
        tokens = [token for token, _ in group]
        if is_noise:
            inputs.append(sentinel)
            targets += [sentinel, *tokens]
            sentinel += 1
        else:
            inputs += tokens
    return inputs, [*targets, EOS]


@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.5, 1.0), (0.9, 2.0), (0.02, 40.0)])
def test_a_row_is_t5s_inputs_and_behind_them_its_targets(density: float, mean_span: float) -> None:
    seq, lengths = 64, [64, 64, 63, 40, 9, 2]
    inputs = made(seq, lengths, density=density, mean_span=mean_span)
    width = SpanCorruptionConfig(density=density, mean_span=mean_span).row_length(seq)
    assert inputs.x.shape == inputs.kwargs["targets"].shape == (6, width) and width % 8 == 0
    for row, length in enumerate(lengths):
        prefix, targets = t5(list(range(1, length + 1)), spans_of(inputs, row, length))
        whole = prefix + targets
        assert inputs.kwargs["prefix"][row] == len(prefix)
        assert inputs.x[row].tolist() == (whole[:-1] + [EOS] * width)[:width]
        expected = [IGNORED] * (len(prefix) - 1) + targets
        assert inputs.kwargs["targets"][row].tolist() == (expected + [IGNORED] * width)[:width]
        assert targets.count(VOCAB) == 1, "every text has a span"
        predicted = (inputs.kwargs["targets"][row] != IGNORED).nonzero()[:, 0].tolist()
        places = inputs.kwargs["places"][row].tolist()
        assert places == predicted + [-1] * (len(places) - len(predicted))


def log_probabilities(cfg: DecoderConfig, weights: dict[str, Tensor], ids: list[int], prefix: int) -> Tensor:
    """Of the token behind each of `ids`, [ids, vocab], in float64: Llama's formulas, and tokens of the prefix
    see one another.
    """
    w, place = {name: one.detach().double() for name, one in weights.items()}, torch.arange(len(ids))
    width = cfg.head_width
    seen = (place <= place[:, None]) | ((place < prefix) & (place[:, None] < prefix))
    angles = place[:, None] * cfg.rope_theta ** (-torch.arange(0, width, 2).double() / width)

    def turned(x: Tensor) -> Tensor:
        z = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((z.real, z.imag), dim=-1)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + cfg.norm_eps).rsqrt() * w[f"{name}.weight"]

    x = w["embed.weight"][ids]
    for layer in (f"layers.{number}" for number in range(cfg.layers)):
        linear = {part: w[f"{layer}.{part}.weight"].T for part in PARTS}
        h = norm(x, f"{layer}.attention_norm")
        q, k, v = (
            (h @ linear[f"attention.{part}"]).unflatten(1, (cfg.heads, width)).transpose(0, 1)
            for part in ("wq", "wk", "wv")
        )
        scores = (turned(q) @ turned(k).mT / width**0.5).masked_fill(~seen, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ linear["attention.wo"]
        h = norm(x, f"{layer}.mlp_norm")
        x = x + (F.silu(h @ linear["mlp.w1"]) * (h @ linear["mlp.w3"])) @ linear["mlp.w2"]
    return (norm(x, "norm") @ w["head.weight"].T).log_softmax(-1)


def test_the_loss_is_that_of_t5s_targets_after_its_inputs() -> None:
    """A prefix decoder in fp32 on the objective's rows, against formulas in float64 on T5's two sequences."""
    cfg = DecoderConfig(layers=2, hidden=32, heads=4, ffn_hidden=48, vocab=VOCAB + 16)
    torch.manual_seed(0)
    model = Decoder(cfg)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.3)
    seq, lengths = 32, [32, 20, 2, 0]
    corrupted = objective(seq, density=0.3)
    fed = corrupted.inputs(batch(lengths, seq), (0, 1, 2, 3))
    with torch.no_grad():
        losses, counts = corrupted.loss(model(fed.x, **fed.kwargs), fed)
    for row, length in enumerate(lengths[:3]):
        inputs, targets = t5(list(range(1, length + 1)), spans_of(fed, row, length))
        found = log_probabilities(cfg, dict(model.named_parameters()), inputs + targets[:-1], len(inputs))
        expected = -found[len(inputs) - 1 :].gather(1, torch.tensor(targets)[:, None]).sum()
        assert counts[row] == len(targets)
        assert float(losses[row]) == pytest.approx(float(expected), rel=1e-5)
    assert losses[3] == counts[3] == 0


def test_what_has_no_text_to_corrupt_counts_nothing() -> None:
    inputs = made(16, [0, 1, 2])
    losses, counts = objective(16).loss(torch.zeros(3), inputs)
    assert counts.tolist() == [0, 0, 3] and losses.shape == (3,)
    assert inputs.kwargs["prefix"].tolist()[:2] == [0, 1]
    assert (inputs.x[0] == EOS).all()


def test_context_of_a_heldout_window_is_no_target_again() -> None:
    given = batch([64] * 200, 64)
    whole = objective(64, density=0.5).inputs(given, tuple(range(200))).kwargs["targets"]
    given["following"][:, :20] = -1
    inputs = objective(64, density=0.5).inputs(given, tuple(range(200)))
    targets = inputs.kwargs["targets"]
    context = (whole >= 1) & (whole <= 20)  # ids are counted from 1
    assert context.sum() > 1000 and torch.equal(targets, whole.masked_fill(context, IGNORED))


@pytest.mark.parametrize(
    ("density", "mean_span", "seq"), [(0.15, 3.0, 512), (0.15, 3.0, 100), (0.5, 8.0, 130)]
)
def test_as_many_tokens_and_spans_as_asked(density: float, mean_span: float, seq: int) -> None:
    rows = 1500
    inputs = made(seq, [seq] * rows, density=density, mean_span=mean_span)
    targets = inputs.kwargs["targets"]
    spans = int((targets >= VOCAB).sum())
    noise = int(((targets > EOS) & (targets < VOCAB)).sum())
    assert noise / (rows * seq) == pytest.approx(density, rel=0.01)
    assert noise / spans == pytest.approx(mean_span, rel=0.01)
    counted = int((targets != IGNORED).sum())
    asked = SpanCorruptionConfig(density=density, mean_span=mean_span).targets_per_row(seq)
    assert counted / rows == pytest.approx(asked, rel=0.01)


def test_spans_lie_everywhere_and_are_of_all_lengths() -> None:
    seq, rows = 100, 4000
    inputs = made(seq, [seq] * rows)
    targets = inputs.kwargs["targets"]
    often = torch.zeros(seq + 2)
    text = targets[(targets > EOS) & (targets <= seq)]
    often.index_add_(0, text, torch.ones(len(text)))
    share = often[1 : seq + 1] / rows
    assert share[0] == 0 and share[-1] == 1, "as T5's: a text begins with what is kept, and ends with a span"
    assert float(share[20:80].mean()) == pytest.approx(float(share[5:20].mean()), rel=0.05)
    assert float((share[5:80] / share[5:80].mean() - 1).abs().max()) < 0.2
    lengths = torch.tensor(
        [
            len(list(group))
            for row in range(400)
            for noise, group in groupby(spans_of(inputs, row, seq))
            if noise
        ]
    )
    assert lengths.min() == 1 and lengths.max() >= 8


def test_a_sequence_is_the_same_in_any_micro_batch_and_differs_from_others() -> None:
    whole = made(64, [64] * 24, first=100)
    for size in (1, 4, 8):
        parts = [made(64, [64] * size, first=100 + at) for at in range(0, 24, size)]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        for name, tensor in whole.kwargs.items():
            assert torch.equal(torch.cat([part.kwargs[name] for part in parts]), tensor)
    assert len({tuple(row.tolist()) for row in whole.x}) == 24
    other = objective(64, seed=1).inputs(batch([64] * 24, 64), tuple(range(100, 124)))
    assert not (other.x == whole.x).all(dim=1).any()


def test_a_tokenizer_with_sentinels_has_them_used() -> None:
    from tokenizers import AddedToken

    from data.tokenizer.training import BUILT

    tokenizer = BUILT["bytes"]()
    tokenizer.add_special_tokens([AddedToken("<extra_id_1>"), AddedToken("<extra_id_0>")])
    vocab = tokenizer.get_vocab_size()
    context = ObjectiveContext(0, 64, vocab, EOS, lambda: tokenizer.to_str().encode())
    inputs = SpanCorruption(SpanCorruptionConfig(), context).inputs(batch([64], 64), (0,))
    targets = inputs.kwargs["targets"][0]
    behind = targets[targets != IGNORED].tolist()
    assert behind[0] == tokenizer.token_to_id("<extra_id_0>")
    assert behind.index(tokenizer.token_to_id("<extra_id_1>")) < behind.index(vocab)
