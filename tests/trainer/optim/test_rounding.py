"""Stochastic rounding: right on average, the same however a tensor is cut; and optimisers that use it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from parallel.engine import LocalParameter
from runs import Alone, Case, build, curve, distance, micro_batches, reference, state_of
from trainer.optim.rounding import Rounding, rounded


def draws(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_mean_is_exact_and_error_below_one_unit() -> None:
    value = torch.tensor([1.0 + 2**-9, -3.0 - 2**-10, 1e-20, 0.0])
    drawn = torch.stack([Rounding(seed, (0,))(value).double() for seed in range(4000)])
    unit = value.abs().double() * 2**-7
    assert bool(((drawn - value).abs() <= unit).all())
    # The draw's standard deviation is at most half a unit, of a mean of 4000 a hundredth of that.
    assert bool(((drawn.mean(0) - value).abs() <= 0.04 * unit).all())


def test_what_bfloat16_holds_is_left_alone() -> None:
    value = draws(0, (50, 50)).bfloat16().float()
    assert torch.equal(Rounding(3, (0, 0))(value).float(), value)


def test_neighbours_draw_independently() -> None:
    value = torch.full((256, 256), 1.0 + 2**-8)
    up = (Rounding(7, (0, 0))(value) > 1.0).double() - 0.5
    assert abs(float(up.mean())) < 0.01
    for a, b in ((up[1:], up[:-1]), (up[:, 1:], up[:, :-1]), (up[1:, 1:], up[:-1, :-1])):
        assert abs(float((a * b).mean())) < 0.01 * 0.25 * 4
    # A hash that only adds up a row's part and a column's would make every rectangle's corners agree.
    corners = up[:-1, :-1] * up[1:, 1:] * up[:-1, 1:] * up[1:, :-1]
    assert abs(float(corners.mean())) < 0.0625 * 0.05


@pytest.mark.parametrize("shape", [(37,), (37, 10), (6, 5, 4)])
def test_pieces_round_as_the_whole(shape: tuple[int, ...]) -> None:
    values = draws(1, shape)
    whole = Rounding(5, (0,) * len(shape))(values)
    assert torch.equal(Rounding(5, (4, *(0,) * (len(shape) - 1)))(values[4:]), whole[4:])
    assert torch.equal(Rounding(5, (0,) * len(shape))(values[4:], first=4), whole[4:])
    if len(shape) > 1:
        corner = values[2:, 3:].contiguous()
        assert torch.equal(Rounding(5, (2, 3, *(0,) * (len(shape) - 2)))(corner), whole[2:, 3:])


def test_compiled_it_draws_the_same() -> None:
    """In one graph a number of dimensions, whatever the shape, the seed and the place."""
    counter = CompileCounterWithBackend("aot_eager")
    kernel = torch.compile(rounded, backend=counter, dynamic=True)
    for seed, shape in enumerate([(37,), (64, 12), (10, 33), (5,), (100, 7)], start=1 << 40):
        rounding, values = Rounding(seed, (seed % 97, *(3,) * (len(shape) - 1))), draws(1, shape)
        assert torch.equal(rounding(values, 2, kernel), rounding(values, 2))
    assert counter.frame_count == 2


def test_draws_differ_by_name_state_and_step() -> None:
    def member(name: str) -> LocalParameter:
        return LocalParameter(name, torch.zeros(2), (2,), (0,), (), lambda parts, function: iter(parts))

    seeds = {Rounding.of(member(n), s, step).seed for n in "ab" for s in ("x", "y") for step in (0, 1)}
    assert len(seeds) == 8


# 20 steps against float32 moments: each is off by up to 2^-8, independently and without bias. Measured: 4e-4.
BOUND = 2e-3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bf16_state_follows_fp32(optimizer: str) -> None:
    case = Case(optimizer=optimizer, state_dtype="bf16", micro_batch=8)
    exact = Case(optimizer=optimizer, micro_batch=8)
    assert 0 < distance(curve(Alone(), case), reference(exact)) < BOUND


def states(context: Any, case: Case) -> Any:
    engine = build(case, context.rank, context.world)
    for step in range(3):
        engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
    return state_of(engine)


def test_every_moment_is_bf16_and_no_master_weight() -> None:
    for chunk in states(Alone(), Case(state_dtype="bf16", optimizer="muon")).chunks:
        expected = torch.bfloat16 if chunk.name.startswith("optim.") else torch.float32
        assert chunk.tensor.dtype == expected, chunk.name


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param({"zero": 1}, marks=pytest.mark.slow),
        {"zero": 3},
        pytest.param({"tp": 2}, marks=pytest.mark.slow),
    ],
    ids=["zero1", "zero3", "tp2"],
)
def test_the_layout_rounds_alike(ranks: Any, parallel: dict[str, Any]) -> None:
    """The draws are the same on every layout, so it differs by float32's rounding alone, which now and then
    tips a moment over to the neighbouring bfloat16: 4e-5. Other draws differ by 5e-4.
    """
    case = Case(parallel=parallel, state_dtype="bf16", micro_batch=2)
    alone = curve(Alone(), Case(state_dtype="bf16", micro_batch=2))
    assert distance(ranks(2).run(curve, case)[0], alone) < BOUND / 10


def test_resume_is_bit_identical() -> None:
    case = Case(state_dtype="bf16", micro_batch=8)
    straight, first, second = (build(case, 0, 1) for _ in range(3))
    for step in range(4):
        straight.step(micro_batches(case, step, 0, 1), lr=1e-3)
    for step in range(2):
        first.step(micro_batches(case, step, 0, 1), lr=1e-3)
    for old, new in zip(first.chunks(), second.chunks()):
        new.tensor.copy_(old.tensor)
    second.load(first.scalars())
    for step in range(2, 4):
        second.step(micro_batches(case, step, 0, 1), lr=1e-3)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(straight.chunks(), second.chunks()))


def test_large_tensors_are_updated_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(state_dtype="bf16", micro_batch=8, steps=3)
    whole = curve(Alone(), case)
    monkeypatch.setattr("trainer.optim.adamw.SLICE_ELEMENTS", 100)
    assert curve(Alone(), case) == whole
