"""Rows of two sentences: what they are made of, which are from elsewhere, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from data.config import DataConfig, Source
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.encoder import Encoder
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.masked.masked_lm import MaskedLM

EOS, VOCAB, SEQ, ROWS = 0, 1000, 32, 4000
MASK, CLS = VOCAB, VOCAB + 1  # beyond a tokenizer without such tokens


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    """Documents of up to 40 ids, cut at 32 inputs: one counts up from 100, its partner from 500."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, base in (("tokens", 100), ("partner", 500)):
        lengths = torch.randint(0, 41, (rows, 1), generator=draw)
        places = torch.arange(SEQ)
        tokens = torch.where((places > 0) & (places <= lengths), base + places - 1, EOS)
        inside = places <= torch.where(lengths > 0, lengths, -1)
        following = torch.where(inside, 7, -1)
        found[name] = tokens
        found["following" if name == "tokens" else "partner_following"] = following
    return found


def fed(tensors: dict[str, Tensor], **keys: Any) -> ModelInputs:
    one = MaskedLM(
        MaskedLMConfig(next_sentence=True, **keys), ObjectiveContext(0, SEQ, VOCAB, EOS, lambda: b"")
    )
    return one.inputs(tensors, tuple(range(len(tensors["tokens"]))))


def unmasked(inputs: ModelInputs) -> Tensor:
    places, targets = inputs.kwargs["places"], inputs.kwargs["targets"]
    seen = torch.cat((inputs.x, torch.zeros_like(inputs.x[:, :1])), dim=1)  # a column for empty slots
    return seen.scatter(1, places.masked_fill(places < 0, SEQ), targets)[:, :SEQ]


def test_rows_are_what_they_are_said_to_be() -> None:
    tensors = batch()
    inputs = fed(tensors)
    rows, labels = unmasked(inputs), inputs.kwargs["labels"]
    lengths = (tensors["tokens"] > 0).sum(1).tolist()
    others = (tensors["partner"] > 0).sum(1).tolist()
    assert torch.equal(inputs.kwargs["pooled"], torch.zeros(ROWS, 1, dtype=torch.long))
    for number, (row, label) in enumerate(zip(rows.tolist(), labels.tolist())):
        whole = min(lengths[number], SEQ - 3)
        types, documents = (inputs.kwargs[name][number].tolist() for name in ("types", "documents"))
        assert row[0] == CLS
        if label == IGNORED:
            assert whole < 2 or others[number] == 0
            assert documents == [1] * SEQ and types == [0] * SEQ
            continue
        cut = row.index(EOS) - 1
        end = row.index(EOS, cut + 2)
        first, second = row[1 : cut + 1], row[cut + 2 : end]
        assert 1 <= cut < whole and first == list(range(100, 100 + cut))
        if label == 0:
            assert second == list(range(100 + cut, 100 + whole))
        else:
            size = min(whole - cut, others[number])
            start = 500 + min(cut, others[number] - size)
            assert second == list(range(start, start + size))
        assert types == [0] * (cut + 2) + [1] * (len(second) + 1) + [0] * (SEQ - end - 1)
        assert documents == [0] * (end + 1) + [1] * (SEQ - end - 1)
        assert row[end + 1 :] == [EOS] * (SEQ - end - 1)


def test_marks_of_a_tokenizers_template_are_not_doubled() -> None:
    plain = batch()
    marked = {name: tensor.clone() for name, tensor in plain.items()}
    for tokens, following in (("tokens", "following"), ("partner", "partner_following")):
        # Each document's ids move on by one for [CLS], and a separator is behind them.
        marked[tokens][:, 2:] = plain[tokens][:, 1:-1]
        marked[tokens][:, 1] = CLS
        length = (plain[tokens] > 0).sum(1, keepdim=True) + 3
        marked[following] = torch.where((torch.arange(SEQ) < length) & (length > 3), 7, -1)
    short = ((plain["tokens"] > 0).sum(1) < SEQ - 3) & ((plain["partner"] > 0).sum(1) < SEQ - 3)
    found, expected = fed(marked), fed(plain)
    assert int(short.sum()) > 1000
    assert torch.equal(unmasked(found)[short], unmasked(expected)[short])
    assert torch.equal(found.kwargs["labels"][short], expected.kwargs["labels"][short])


def test_half_are_from_elsewhere_and_every_cut_is_as_likely() -> None:
    tensors = batch(60_000)
    inputs = fed(tensors)
    labels = inputs.kwargs["labels"]
    # A stream gives no partner without text.
    known = labels[(labels != IGNORED) & (tensors["partner"] > 0).any(1)].double()
    assert len(known) > 54_000 and float(known.mean()) == pytest.approx(0.5, rel=0.01)
    long = (tensors["tokens"] > 0).sum(1) >= SEQ - 3
    cuts = (unmasked(inputs)[long & (labels == 0)] >= 100).logical_not()[:, 1:].int().argmax(1)
    shares = torch.bincount(cuts, minlength=SEQ).double()
    assert shares[0] == 0 and int((shares > 0).sum()) == SEQ - 4
    spread = shares[1 : SEQ - 3] / shares[1 : SEQ - 3].mean() - 1
    assert float(spread.abs().max()) < 5 / float(shares[1 : SEQ - 3].mean()) ** 0.5


def test_the_head_learns_what_can_be_told() -> None:
    """From documents that count up from 100, second sentences from elsewhere from 500: ln 2 falls to almost
    nothing, on rows that were not trained on.
    """
    torch.manual_seed(0)
    sizes = {"layers": 1, "hidden": 32, "heads": 4, "vocab": VOCAB + 2, "window": 0, "token_types": 2}
    model = Encoder(EncoderConfig(**sizes, next_sentence=True))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    one = MaskedLM(MaskedLMConfig(next_sentence=True), ObjectiveContext(0, SEQ, VOCAB, EOS, lambda: b""))
    tensors = batch(60 * 32 + 500)
    inputs = one.inputs(tensors, tuple(range(len(tensors["tokens"]))))
    rows = [slice(32 * step, 32 * (step + 1)) for step in range(60)]

    def output(which: slice) -> tuple[Tensor, ModelInputs]:
        part = ModelInputs(inputs.x[which], {name: t[which] for name, t in inputs.kwargs.items()})
        return model(part.x, **part.kwargs), part

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for which in rows:
        losses, counts = one.loss(*output(which))
        optimizer.zero_grad()
        (losses.sum() / counts.sum()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        figures = one.measure(*output(slice(60 * 32, None)))
    _, (loss, of), (right, _) = figures.tolist()
    assert loss / of < 0.1 and right / of > 0.97


def test_marks_and_padding_are_never_predicted() -> None:
    inputs = fed(batch(), mask_rate=1.0)
    targets = inputs.kwargs["targets"]
    assert not ((targets == EOS) | (targets >= VOCAB)).any()
    rows = unmasked(inputs)
    whole = inputs.kwargs["labels"] != IGNORED
    text = ((rows > 0) & (rows < VOCAB)).sum(1)
    assert torch.equal((targets != IGNORED).sum(1)[whole], text[whole])


def test_a_masked_row_counts_nothing() -> None:
    tensors = batch(4)
    for name in tensors:
        tensors[name][1] = EOS if name in ("tokens", "partner") else -1
    inputs = fed(tensors)
    assert inputs.kwargs["labels"][1] == IGNORED and (inputs.kwargs["targets"][1] == IGNORED).all()


def test_context_parallelism_counts_a_label_on_the_rank_with_the_first_token() -> None:
    one = MaskedLM(MaskedLMConfig(next_sentence=True), ObjectiveContext(0, SEQ, VOCAB, EOS, lambda: b""))
    inputs = fed(batch(8))
    output = torch.ones(8, 4)
    known = float((inputs.kwargs["labels"] != IGNORED).sum())
    assert one.measure(output, inputs)[1:].tolist() == [[8.0, known]] * 2
    inputs.kwargs["pooled"].fill_(-1)
    assert one.measure(output, inputs)[1:, 1].tolist() == [0.0, 0.0]
    assert one.measures == ("masked_accuracy", "next_sentence_loss", "next_sentence_accuracy")


@pytest.mark.parametrize(
    ("keys", "model", "data", "message"),
    [
        (
            {"mask_share": 0.9, "random_share": 0.2},
            {},
            {},
            "objective.mask_share=0.9 + objective.random_share=0.2",
        ),
        ({}, {"next_sentence": True}, {}, "model.next_sentence=true: nothing would train that head"),
        ({"next_sentence": True}, {}, {}, "needs a model with a head for it: set model.next_sentence=true"),
        ({"next_sentence": True}, {"next_sentence": True}, {}, "with data.packing=cut, data.partners=false"),
        (
            {"next_sentence": True},
            {"next_sentence": True},
            {"packing": "one", "partners": True, "seq_len": 4},
            "data.seq_len=4: objective.next_sentence=true needs at least 5",
        ),
    ],
)
def test_what_does_not_go_together_is_named(
    keys: dict[str, Any], model: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        MaskedLMConfig(**keys).check(EncoderConfig(**model), DataConfig([Source("x")], **data))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_goes_together_is_taken() -> None:
    data = DataConfig([Source("x")], packing="one", partners=True)
    MaskedLMConfig(next_sentence=True).check(EncoderConfig(next_sentence=True), data)
    MaskedLMConfig().check(EncoderConfig(), DataConfig([Source("x")]))
    assert MaskedLMConfig.needs <= EncoderConfig.offers and not MaskedLMConfig.needs <= DecoderConfig.offers
