"""Draws: functions of (seed, name, sequence number, place) alone, and as evenly spread as they should be."""

import math

import pytest
import torch

from trainer.objectives.draws import Draw, numbers

CPU = torch.device("cpu")
MANY = numbers(range(4000), CPU)


def test_a_sequence_draws_the_same_in_any_micro_batch_and_call() -> None:
    draw = Draw(7, "some.draw")
    whole = numbers(range(100, 132), CPU)
    below = torch.arange(1, 33)[:, None]
    for one in (
        lambda s, b: draw.uniform(s, 50),
        lambda s, b: draw.integers(s, 50, b),
        lambda s, b: draw.ranks(s, 50),
        lambda s, b: draw.bits(s, 50),
    ):
        expected = one(whole, below)
        parts = [one(whole[i : i + 4], below[i : i + 4]) for i in range(0, 32, 4)]
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(one(whole.flip(0), below.flip(0)).flip(0), expected)


def test_more_places_leave_the_first_ones_as_they_are() -> None:
    draw = Draw(0, "x")
    assert torch.equal(draw.bits(MANY[:9], 30)[:, :20], draw.bits(MANY[:9], 20))


def test_seed_name_and_sequence_each_change_everything() -> None:
    first = Draw(0, "a").bits(MANY, 8)
    for other in (Draw(1, "a").bits(MANY, 8), Draw(0, "b").bits(MANY, 8), Draw(0, "a").bits(MANY + 4000, 8)):
        assert not (first == other).any()


def test_the_numbers_of_today_are_those_of_every_version() -> None:
    """A checkpoint that is resumed under a later version has to see the same masks."""
    bits = Draw(3, "pinned").bits(numbers([0, 1, -1, 10**12], CPU), 2)
    assert bits.tolist() == PINNED


PINNED = [
    [-648525211205060484, 277031915502896540],
    [7026264613752832862, 7309730970698598237],
    [-8238213275064141540, -8401894953932348886],
    [-3840607934852520933, 4099897623130671661],
]


def test_uniform_numbers_are_uniform_along_rows_and_places() -> None:
    drawn = Draw(1, "uniform").uniform(MANY, 100)
    assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() < 1
    assert abs(float(drawn.double().mean()) - 0.5) < 3 / math.sqrt(12 * drawn.numel())
    shares = torch.histc(drawn, bins=100, min=0, max=1) / drawn.numel()
    assert float((shares * 100 - 1).abs().max()) < 4.5 / math.sqrt(drawn.numel() / 100)
    for other, one in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        together = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]
        assert abs(float(together)) < 4 / math.sqrt(one.numel())


@pytest.mark.parametrize("below", [1, 2, 3, 1000, 1 << 31])
def test_integers_are_below_their_bound_and_equally_frequent(below: int) -> None:
    drawn = Draw(1, "integers").integers(MANY, 100, below)
    assert drawn.min() >= 0 and drawn.max() < below
    mean = float(drawn.double().mean()) / below
    assert abs(mean - 0.5 * (1 - 1 / below)) < 4 / math.sqrt(12 * drawn.numel())
    if below == 3:
        assert (drawn.flatten().bincount() / drawn.numel() * 3 - 1).abs().max() < 0.01


def test_ranks_are_a_permutation_in_which_every_place_is_chosen_equally_often() -> None:
    ranks = Draw(2, "ranks").ranks(MANY, 40)
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(40).expand(4000, 40))
    chosen = (ranks < 6).double().mean(dim=0)
    assert float((chosen / 0.15 - 1).abs().max()) < 4 * math.sqrt(0.85 / 0.15 / 4000)
    pairs = (ranks[:, :-1] < 6) & (ranks[:, 1:] < 6)
    assert abs(float(pairs.double().mean()) / (6 / 40 * 5 / 39) - 1) < 0.05


def test_ranks_among_some_places_put_these_first() -> None:
    among = torch.arange(40) < torch.arange(4000)[:, None] % 41
    ranks = Draw(2, "ranks").ranks(MANY, 40, among)
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(40).expand(4000, 40))
    assert torch.equal(ranks < among.sum(dim=1, keepdim=True), among)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    draw, on_gpu = Draw(5, "device"), numbers(range(4000), torch.device("cuda"))
    assert torch.equal(draw.bits(on_gpu, 64).cpu(), draw.bits(MANY, 64))
    assert torch.equal(draw.uniform(on_gpu, 64).cpu(), draw.uniform(MANY, 64))
    assert torch.equal(draw.integers(on_gpu, 64, 1000).cpu(), draw.integers(MANY, 64, 1000))
    assert torch.equal(draw.ranks(on_gpu, 64).cpu(), draw.ranks(MANY, 64))
