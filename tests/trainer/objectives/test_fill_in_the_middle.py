"""Fill-in-the-middle: documents come back whole, and as many are moved as asked."""

import itertools

import pytest
import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from trainer.objectives.causal_lm import CausalLM
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.spans.config import FillInTheMiddleConfig
from trainer.objectives.spans.fill_in_the_middle import FillInTheMiddle
from trainer.objectives.spans.pieces import MARKS

EOS, VOCAB = 0, 1000
PREFIX, SUFFIX, MIDDLE = VOCAB, VOCAB + 1, VOCAB + 2


def objective(seq: int, seed: int = 0, **keys: float) -> FillInTheMiddle:
    return FillInTheMiddle(FillInTheMiddleConfig(**keys), ObjectiveContext(seed, seq, VOCAB, EOS, bytes))  # type: ignore[arg-type]


def packed(rows: int, seq: int, seed: int = 0, most: int = 20) -> dict[str, Tensor]:
    """Rows of documents between separators, as the stream packs them; some end in padding."""
    draw = torch.Generator().manual_seed(seed)
    tokens, following, documents = [], [], []
    for _ in range(rows):
        fresh = iter((1 + torch.randperm(VOCAB - 1, generator=draw)).tolist())
        ids, numbers = [EOS] * int(torch.rand(1, generator=draw) < 0.5), [0]
        while len(ids) <= seq:
            length = int(torch.randint(1, most, (1,), generator=draw))
            ids += [*itertools.islice(fresh, length), EOS]
            numbers += [numbers[-1]] * (len(ids) - 1 - len(numbers)) + [numbers[-1] + 1]
        tokens.append(ids[:seq])
        following.append(ids[1 : seq + 1])
        documents.append(numbers[:seq])
    found = {"tokens": torch.tensor(tokens), "following": torch.tensor(following)}
    short = seq - 7
    found["tokens"][0, short:], found["following"][0, short - 1 :] = EOS, -1
    return found | {"documents": torch.tensor(documents)}


def made(tensors: dict[str, Tensor], first: int = 0, **keys: float) -> ModelInputs:
    seq = tensors["tokens"].shape[1]
    given = {name: tensor for name, tensor in tensors.items() if name != "documents"}
    return objective(seq, **keys).inputs(given, tuple(range(first, first + len(tensors["tokens"]))))


def pieces(ids: list[int]) -> list[list[int]]:
    """What is between separators, ends of the list included."""
    found: list[list[int]] = [[]]
    for token in ids:
        if token == EOS:
            found.append([])
        else:
            found[-1].append(token)
    return found


def put_back(piece: list[int]) -> list[int]:
    """The document that was laid out as `piece`."""
    if PREFIX not in piece:
        return piece
    suffix, middle = piece.index(SUFFIX), piece.index(MIDDLE)
    assert piece[0] == PREFIX and 0 < suffix < middle
    return piece[1:suffix] + piece[middle + 1 :] + piece[suffix + 1 : middle] if suffix > 1 else (
        piece[middle + 1 :] + piece[suffix + 1 : middle]
    )  # fmt: skip


@pytest.mark.parametrize("suffix_first", [0.0, 1.0])
def test_documents_come_back_whole(suffix_first: float) -> None:
    tensors = packed(40, 64)
    inputs = made(tensors, rate=1.0, suffix_first=suffix_first)
    for row in range(1, 40):
        before = pieces([*tensors["tokens"][row].tolist(), int(tensors["following"][row, -1])])
        after = pieces(inputs.x[row].tolist())
        for known, laid_out in zip(before, after[:-1]):
            assert sorted(put_back(laid_out)) == sorted(known)
            if suffix_first or laid_out[1:2] != [SUFFIX]:  # an empty prefix looks like the other order
                assert put_back(laid_out) == known
        assert len(after) > 1
    alike = [piece for row in inputs.x.tolist() for piece in pieces(row)[:-1] if piece]
    assert all(piece[0] == PREFIX for piece in alike)
    orders = [piece[1] == SUFFIX for piece in alike if len(piece) > 12]
    assert all(orders) if suffix_first else sum(orders) < 0.4 * len(orders)


def test_rate_0_is_next_token_prediction() -> None:
    tensors = packed(40, 64)
    bare, inputs = CausalLM().inputs(tensors, tuple(range(40))), made(tensors, rate=0.0)
    assert torch.equal(inputs.x, bare.x)
    assert torch.equal(inputs.kwargs["targets"], bare.kwargs["targets"])


def test_every_token_behind_another_is_its_target() -> None:
    inputs = made(packed(40, 64), rate=0.7)
    targets = inputs.kwargs["targets"]
    counted = targets != IGNORED
    assert torch.equal(targets[:, :-1][counted[:, :-1]], inputs.x[:, 1:][counted[:, :-1]])
    assert counted[1:].all(), "the marks count too"
    padding = int((packed(40, 64)["following"][0] < 0).sum())
    marks = int((inputs.x[0] >= VOCAB).sum())
    assert int((~counted[0]).sum()) == max(0, padding - marks) and padding


def test_as_many_documents_are_moved_in_either_order_as_asked() -> None:
    """Of 100,000 documents: rows of four with nine tokens each, and room for the marks of all four."""
    rows, length, rate, suffix_first = 25_000, 9, 0.5, 0.3
    one = torch.tensor([EOS, *range(1, length + 1)])
    ids = torch.cat((one.repeat(4), torch.full((4 * MARKS + 2,), EOS)))
    tokens, following = ids[:-1].repeat(rows, 1), ids[1:].repeat(rows, 1)
    following[:, 4 * (length + 1) :] = -1
    x = made({"tokens": tokens, "following": following}, rate=rate, suffix_first=suffix_first).x
    moved = x == PREFIX
    assert torch.equal(moved.sum(1), (x == MIDDLE).sum(1)), "no mark is pushed behind the row's end"
    assert float(moved.sum()) / (4 * rows) == pytest.approx(rate, rel=0.01)
    # An empty prefix looks like the other order: the smaller of two cuts among n + 1 places is the first.
    empty = 2 / (length + 1) - 1 / (length + 1) ** 2
    before_suffix = moved[:, :-1] & (x[:, 1:] == SUFFIX)
    expected = suffix_first + (1 - suffix_first) * empty
    assert float(before_suffix.sum() / moved.sum()) == pytest.approx(expected, rel=0.01)
    # No document of a row says anything of the next one.
    of_row = moved.sum(1).bincount(minlength=5).double() / rows
    assert of_row.tolist() == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.01)


def test_cuts_are_drawn_evenly() -> None:
    """Of documents of 8 tokens, laid out prefix first: each cut is at any of 9 places as often."""
    many, length = 120_000, 8
    ids = torch.arange(1, length + 1).repeat(many, 1)
    eos = torch.full((many, MARKS + 2), EOS)
    tokens, following = torch.cat((eos[:, :1], ids, eos[:, 1:]), dim=1), torch.cat((ids, eos), dim=1)
    x = made({"tokens": tokens, "following": following}, rate=1.0, suffix_first=0.0).x
    suffix, middle = ((x == mark).int().argmax(1) for mark in (SUFFIX, MIDDLE))
    cuts = suffix - 2, length - (middle - suffix - 1)
    pairs = [(one, other) for one in range(length + 1) for other in range(length + 1)]
    for found, expected in zip(cuts, ([min(pair) for pair in pairs], [max(pair) for pair in pairs])):
        assert float(found.double().mean()) == pytest.approx(sum(expected) / len(pairs), rel=0.01)
        shares = found.bincount(minlength=length + 1) / many
        wanted = torch.tensor(expected).bincount(minlength=length + 1) / len(pairs)
        assert float((shares - wanted).abs().max()) < 0.005


def test_a_sequence_is_the_same_in_any_micro_batch() -> None:
    tensors = packed(24, 64)
    whole = made(tensors, first=50, rate=0.5)
    for size in (1, 4):
        parts = [
            made({name: t[at : at + size] for name, t in tensors.items()}, first=50 + at, rate=0.5)
            for at in range(0, 24, size)
        ]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.kwargs["targets"] for part in parts]), whole.kwargs["targets"])


def test_a_document_that_was_cut_ends_in_a_separator_though_another_begins() -> None:
    """Two documents without a separator between: the first one's last token has one as its target."""
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]).repeat(50, 1)
    following = torch.tensor([[2, 3, EOS, 5, 6, 7, 8, 9]]).repeat(50, 1)
    inputs = made({"tokens": tokens, "following": following}, rate=0.5)
    ends = 0
    for x, targets in zip(inputs.x.tolist(), inputs.kwargs["targets"].tolist()):
        at = targets.index(EOS)
        assert at == (5 if PREFIX in x[:1] else 2)
        assert sorted(token for token in x[: at + 1] if token < VOCAB) == [1, 2, 3]
        assert not {4, 5, 6, 7, 8, 9} & set(x[: at + 1])
        ends += targets.count(EOS)
    assert ends == 50


def test_attention_stays_in_documents_and_their_positions_start_again() -> None:
    tensors = packed(40, 64)
    inputs = objective(64, rate=0.5).inputs(tensors, tuple(range(40)))
    documents, positions = inputs.kwargs["documents"], inputs.kwargs["positions"]
    text = {
        int(token): int(document)
        for token, document in zip(tensors["tokens"][3], tensors["documents"][3])
        if token != EOS
    }
    for token, document in zip(inputs.x[3].tolist(), documents[3].tolist()):
        if token in text and token < VOCAB:
            assert document == text[token]
    for row in range(40):
        for document in documents[row].unique():
            mine = positions[row][documents[row] == document]
            assert torch.equal(mine, torch.arange(len(mine)))
    assert torch.equal(inputs.x, made(tensors, rate=0.5).x)


def test_masked_rows_count_nothing() -> None:
    tensors = {"tokens": torch.full((2, 16), EOS), "following": torch.full((2, 16), -1)}
    inputs = made(tensors, rate=1.0)
    assert (inputs.x == EOS).all() and (inputs.kwargs["targets"] == IGNORED).all()
