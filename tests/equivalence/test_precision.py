"""bf16 and fp16 on any layout, and the loss scale of fp16."""

from typing import Any

import pytest
import torch

from parallel.engine import Engine, Micro
from runs import Alone, Case, build, curve, distance, micro_batches, reference, state_of

# 20 steps against fp32. A weight is rounded to 8 bits (2^-9 relative), an activation at every operator;
# the gradient norm, a sum over all of them, came out within 4e-3 here. fp16 has 11 bits.
BOUNDS = {"bf16": 2e-2, "fp16": 5e-3}
LAYOUTS = [
    pytest.param(1, {}, id="alone"),
    pytest.param(2, {"zero": 1}, id="zero1", marks=pytest.mark.slow),
    pytest.param(2, {"zero": 3}, id="zero3"),
    pytest.param(2, {"tp": 2}, id="tp"),
    pytest.param(2, {"pp": 2}, id="pp", marks=pytest.mark.slow),
    # A micro-batch's backward is whole or in two parts here, and FSDP reduces no mixture of the two.
    pytest.param(2, {"pp": 2, "schedule": "dualpipe_v", "zero": 2}, id="dualpipe"),
]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("world", "parallel"), LAYOUTS)
def test_half_precision_follows_fp32(
    ranks: Any, world: int, parallel: dict[str, Any], precision: str
) -> None:
    case = Case(parallel=parallel, precision=precision, micro_batch=2 if "pp" in parallel else 4)
    curves = ranks(world).run(curve, case) if world > 1 else [curve(Alone(), case)]
    assert distance(curves[0], reference(case)) < BOUNDS[precision]
    assert curves[0][-1][0] < curves[0][0][0] - 0.2, "it does not learn"


def overflow(context: Any, parallel: dict[str, Any]) -> tuple[Any, Any, bool, Any]:
    """A step whose loss scale is far too large, then one that is not."""
    case = Case(parallel=parallel, precision="fp16", micro_batch=2)
    engine = build(case, context.rank, context.world)
    engine.load({"updates": 0, "loss_scale": 2.0**40, "good_steps": 7})
    before = state_of(engine)
    skipped = engine.step(batches(engine, case, 0), lr=case.lr)
    after = state_of(engine)
    untouched = all(torch.equal(b.tensor, a.tensor) for b, a in zip(before.chunks, after.chunks))
    engine.load({**after.scalars, "loss_scale": 2.0**10})
    good = engine.step(batches(engine, case, 1), lr=case.lr)
    return skipped, good, untouched, after.scalars


def batches(engine: Engine, case: Case, step: int) -> list[Micro]:
    return list(micro_batches(case, step, engine.data_rank, engine.data_ranks))


@pytest.mark.parametrize(
    ("world", "parallel"), [(1, {}), (2, {"zero": 2}), (2, {"pp": 2})], ids=["alone", "dp", "pp"]
)
def test_overflow_is_skipped(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    results = ranks(world).run(overflow, parallel) if world > 1 else [overflow(Alone(), parallel)]
    for skipped, good, untouched, scalars in results:
        assert skipped.skipped and untouched
        assert skipped.loss_scale == 2.0**40
        assert scalars == {"updates": 0, "loss_scale": 2.0**39, "good_steps": 0}
        assert not good.skipped and good.grad_norm < 10


def test_fp16_and_bf16_scalars_round_trip() -> None:
    case = Case(precision="fp16", steps=2)
    engine = build(case, 0, 1)
    engine.load({"updates": 5, "loss_scale": 2.0**11, "good_steps": 1999})
    engine.step(batches(engine, case, 0), lr=0.0)
    assert engine.scalars() == {"updates": 6, "loss_scale": 2.0**12, "good_steps": 0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_that_is_not_finite_is_a_fault_and_no_update(precision: str) -> None:
    case = Case(precision=precision)
    engine = build(case, 0, 1)
    for chunk in engine.chunks():
        if chunk.name == "model.norm.weight":
            chunk.tensor.fill_(torch.inf)
    engine.load(engine.scalars())
    before = {c.name: c.tensor.clone() for c in engine.chunks()}
    result = engine.step(batches(engine, case, 0), lr=1e-3)
    assert result.skipped and "not finite" in result.fault
    assert all(torch.equal(before[c.name], c.tensor) for c in engine.chunks()), "nothing may be updated"


def resume_in_half(context: Any, precision: str) -> bool:
    """Bit for bit on the same layout: interrupted after three steps, or not."""
    case = Case(parallel={"zero": 1}, precision=precision, micro_batch=2)
    straight, first, second = (build(case, context.rank, context.world) for _ in range(3))
    for step in range(6):
        straight.step(batches(straight, case, step), lr=1e-3)
    for step in range(3):
        first.step(batches(first, case, step), lr=1e-3)
    whole = {c.name + str(c.offset): c.tensor.clone() for c in first.chunks()}
    for chunk in second.chunks():
        chunk.tensor.copy_(whole[chunk.name + str(chunk.offset)])
    second.load(first.scalars())
    for step in range(3, 6):
        second.step(batches(second, case, step), lr=1e-3)
    return all(torch.equal(a.tensor, b.tensor) for a, b in zip(straight.chunks(), second.chunks()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_identical(ranks: Any, precision: str) -> None:
    assert all(ranks(2).run(resume_in_half, precision))
