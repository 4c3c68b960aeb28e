"""The second engine against the first: the same curve and checkpoints, each going on from the other's."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.deepspeed_engine.engine import DeepSpeedEngine
from parallel.engine import Engine
from runs import (
    SEQ,
    Alone,
    Case,
    State,
    assemble,
    build,
    distance,
    fill,
    micro_batches,
    reference,
    state_of,
    train,
)

pytest.importorskip("deepspeed")

TOLERANCE = 1e-5
STEPS = 6
OFFLOADED = {"zero": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
LAYOUTS: list[dict[str, Any]] = [
    *({"zero": zero} for zero in (0, 1, 2, 3)),
    {"zero": 1, "offload_optimizer": "cpu"},
    {"zero": 2, "offload_optimizer": "cpu"},
    OFFLOADED,
]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def deepspeed(parallel: dict[str, Any], **kwargs: Any) -> Case:
    return Case(**{"micro_batch": 2, "parallel": {"engine": "deepspeed", **parallel}, **kwargs})


@contextmanager
def engine_of(context: Any, case: Case) -> Iterator[Engine]:
    engine = build(case, context.rank, context.world)
    try:
        yield engine
    finally:
        engine.close()


def curve(context: Any, case: Case) -> list[tuple[float, float]]:
    with engine_of(context, case) as engine:
        return train(engine, case)


def check(ranks: Any, world: int, case: Case, tolerance: float = TOLERANCE) -> None:
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < tolerance


# -- the curve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", LAYOUTS, ids=label)
def test_stage_and_offload_leave_no_trace(ranks: Any, parallel: dict[str, Any]) -> None:
    check(ranks, 2, deepspeed(parallel, steps=5))


@pytest.mark.parametrize("parallel", [{"zero": 2}, {"zero": 3, "recompute": "full"}], ids=label)
def test_four_ranks_tied_embeddings_documents(ranks: Any, parallel: dict[str, Any]) -> None:
    # Width 36 and vocabulary 130: shares end inside rows, and the last ones are padded.
    model = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130, "tie_embeddings": True}
    check(ranks, 4, deepspeed(parallel, model=model, documents=True, micro_batch=1, steps=STEPS))


# Against fp32, with test_precision's bounds: a weight is rounded to 8 bits (bf16) or 11 (fp16), an
# activation at every operator. Without ZeRO, gradients are also added up in that type.
@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        ({"zero": 0}, "bf16"),
        ({"zero": 0}, "fp16"),
        ({"zero": 1}, "bf16"),
        ({"zero": 2}, "fp16"),
        (OFFLOADED, "bf16"),
    ],
    ids=label,
)
def test_half_precision_follows_fp32(ranks: Any, parallel: dict[str, Any], precision: str) -> None:
    check(
        ranks, 2, deepspeed(parallel, precision=precision, steps=10), {"bf16": 2e-2, "fp16": 5e-3}[precision]
    )


# -- faults ---------------------------------------------------------------------------------------------


def count_not_compensated(patch: pytest.MonkeyPatch) -> None:
    """Gradients divided by the number of positions, as if no target were masked."""
    true = DeepSpeedEngine._update

    def update(self: DeepSpeedEngine, lr: float, to_mean: float) -> bool:
        return true(self, lr, self._normalisation.to_mean(8 * SEQ))

    patch.setattr(DeepSpeedEngine, "_update", update)


def averaged_over_ranks(patch: pytest.MonkeyPatch) -> None:
    true = DeepSpeedEngine._accumulate

    def accumulate(self: DeepSpeedEngine, batches: Any, factor: float) -> Tensor:
        return true(self, batches, factor / self.data_ranks)

    patch.setattr(DeepSpeedEngine, "_accumulate", accumulate)


def averaged_over_micro_batches(patch: pytest.MonkeyPatch) -> None:
    import deepspeed

    true = deepspeed.DeepSpeedEngine.backward
    patch.setattr(deepspeed.DeepSpeedEngine, "backward", lambda self, loss, **_: true(self, loss))


def masters_rounded(patch: pytest.MonkeyPatch) -> None:
    """First weights that went through bf16, as DeepSpeed makes its masters."""
    from parallel.deepspeed_engine.masters import Master

    true = Master.fill
    patch.setattr(Master, "fill", lambda self, whole: true(self, whole.bfloat16()))


def faulty_curve(context: Any, case: Case, fault: Callable[[pytest.MonkeyPatch], None]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        return curve(context, case)


@pytest.mark.parametrize(
    ("zero", "fault"),
    [
        *((0, fault) for fault in (count_not_compensated, averaged_over_ranks, averaged_over_micro_batches)),
        *((2, fault) for fault in (count_not_compensated, averaged_over_ranks, averaged_over_micro_batches)),
        (3, averaged_over_micro_batches),
        (3, masters_rounded),
    ],
)
def test_planted_fault_is_found(ranks: Any, fault: Any, zero: int) -> None:
    case = deepspeed({"zero": zero}, steps=3)
    assert distance(ranks(2).run(faulty_curve, case, fault)[0], reference(case)) > 5 * TOLERANCE


# -- checkpoints ----------------------------------------------------------------------------------------


def train_and_save(context: Any, case: Case) -> State:
    with engine_of(context, case) as engine:
        train(engine, case)
        return state_of(engine)


def resume_and_train(context: Any, case: Case, whole: dict[str, Tensor], scalars: dict[str, Any]) -> Any:
    with engine_of(context, replace(case, seed=99)) as engine:
        fill(engine, whole, scalars)
        return train(engine, case, first_step=STEPS)


def load_and_save(context: Any, case: Case, whole: dict[str, Tensor], scalars: dict[str, Any]) -> Any:
    with engine_of(context, replace(case, seed=99)) as engine:
        fill(engine, whole, scalars)
        state = state_of(engine)
        batches: Any = micro_batches(case, STEPS, engine.data_rank, engine.data_ranks)
        return state, engine.evaluate(batches), engine.step(batches, lr=1e-3)


# ZeRO-2 and 3 are among the pairs of test_resume_anywhere.
@pytest.mark.parametrize("parallel", [{"zero": 0}, {"zero": 1}, OFFLOADED], ids=label)
def test_each_engine_goes_on_from_the_other(ranks: Any, parallel: dict[str, Any]) -> None:
    ours, others = deepspeed(parallel, steps=STEPS), Case(parallel={"zero": 2}, micro_batch=2, steps=STEPS)
    straight = reference(replace(ours, steps=2 * STEPS))[STEPS:]
    for first, second in ((ours, others), (others, ours)):
        states = ranks(2).run(train_and_save, first)
        assert states[0].scalars == {"updates": STEPS}
        curves = ranks(2).run(resume_and_train, second, assemble(states), states[0].scalars)
        assert distance(curves[0], straight) < TOLERANCE


@pytest.mark.parametrize("parallel", [{"zero": 0}, {"zero": 2}, OFFLOADED], ids=label)
def test_bf16_state_passes_through_unchanged(ranks: Any, parallel: dict[str, Any]) -> None:
    """Before any step, into an engine with other weights: every bit, and the model computes with it."""
    made = train_and_save(Alone(), Case(precision="bf16", micro_batch=2, steps=STEPS))
    whole = assemble([made])
    case = deepspeed(parallel, precision="bf16", steps=STEPS)
    results = ranks(2).run(load_and_save, case, whole, made.scalars)
    passed = assemble([state for state, _, _ in results])
    assert passed.keys() == whole.keys()
    assert all(torch.equal(passed[name], whole[name]) for name in whole)
    _, evaluated, stepped = results[0]
    _, expected, expected_step = load_and_save(
        Alone(), replace(case, parallel={}, micro_batch=8), whole, made.scalars
    )
    assert evaluated.count == expected.count == stepped.count
    # The same bf16 weights, other shapes of matrix products: one rounding an operator.
    assert evaluated.loss_sum == pytest.approx(expected.loss_sum, rel=2e-3)
    assert stepped.loss_sum == pytest.approx(evaluated.loss_sum, rel=1e-6)
    assert stepped.grad_norm == pytest.approx(expected_step.grad_norm, rel=2e-2)


def interrupted(context: Any, case: Case) -> bool:
    """Whether six steps and three, then three resumed, end in the same bits."""
    whole: dict[str, Tensor] = {}

    def steps(engine: Engine, first: int, last: int) -> None:
        for step in range(first, last):
            batches: Any = micro_batches(case, step, engine.data_rank, engine.data_ranks)
            engine.step(batches, lr=1e-3)

    with engine_of(context, case) as engine:
        steps(engine, 0, 6)
        straight = state_of(engine)
    with engine_of(context, case) as engine:
        steps(engine, 0, 3)
        whole, scalars = {c.name + str(c.offset): c.tensor.clone() for c in engine.chunks()}, engine.scalars()
    with engine_of(context, case) as engine:
        for chunk in engine.chunks():
            chunk.tensor.copy_(whole[chunk.name + str(chunk.offset)])
        engine.load(scalars)
        steps(engine, 3, 6)
        resumed = state_of(engine)
    same = all(torch.equal(a.tensor, b.tensor) for a, b in zip(straight.chunks, resumed.chunks, strict=True))
    return same and straight.scalars == resumed.scalars


@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        ({"zero": 0}, "fp16"),
        ({"zero": 1}, "bf16"),
        ({"zero": 2}, "fp32"),
        (OFFLOADED, "bf16"),
    ],
    ids=label,
)
def test_resume_is_bit_identical(ranks: Any, parallel: dict[str, Any], precision: str) -> None:
    assert all(ranks(2).run(interrupted, deepspeed(parallel, precision=precision)))


def compiled(operator: str) -> bool:
    from torch.utils.cpp_extension import get_default_build_root

    # For this very torch: another's is compiled again, for minutes. Where that was killed, a lock is left, or
    # objects that are newer than the library.
    ours = str(Path(torch.__file__).parent)
    return any(
        ours in (library.parent / "build.ninja").read_text()
        and not (library.parent / "lock").exists()
        and all(part.stat().st_mtime <= library.stat().st_mtime for part in library.parent.glob("*.o"))
        for library in Path(get_default_build_root()).glob(f"*/{operator}/{operator}.so")
    )


def test_offload_to_nvme_trains_saves_and_resumes(ranks: Any, tmp_path: Path) -> None:
    if not compiled("async_io"):
        pytest.skip("DeepSpeed's async_io is not compiled here: it needs libaio-dev and takes minutes")
    # Wide enough that matrices (1 MB and more a rank) go to the disk, while norms stay in memory.
    parallel = {
        "zero": 3,
        "offload_optimizer": "nvme",
        "offload_parameters": "nvme",
        "nvme_path": str(tmp_path),
    }
    case = deepspeed(parallel, model={"hidden": 128, "ffn_hidden": 512}, steps=STEPS)
    states = ranks(2).run(train_and_save, case)
    assert not list(tmp_path.iterdir())
    curves = ranks(2).run(resume_and_train, case, assemble(states), states[0].scalars)
    assert distance(curves[0], reference(replace(case, steps=2 * STEPS))[STEPS:]) < TOLERANCE


# -- one step -------------------------------------------------------------------------------------------


def overflow(context: Any, case: Case) -> Any:
    """A step whose loss scale is far too large, then one that is not."""
    with engine_of(context, case) as engine:
        engine.load({"updates": 0, "loss_scale": 2.0**40, "good_steps": 7})
        before = state_of(engine)
        batches: Any = micro_batches(case, 0, engine.data_rank, engine.data_ranks)
        skipped = engine.step(batches, lr=case.lr)
        after = state_of(engine)
        same = all(torch.equal(b.tensor, a.tensor) for b, a in zip(before.chunks, after.chunks, strict=True))
        engine.load({**after.scalars, "loss_scale": 2.0**10})
        return skipped, same, after.scalars, engine.step(batches, lr=case.lr)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_overflow_is_skipped(ranks: Any, zero: int) -> None:
    for skipped, same, scalars, good in ranks(2).run(overflow, deepspeed({"zero": zero}, precision="fp16")):
        assert skipped.skipped and same
        assert skipped.loss_scale == 2.0**40
        assert scalars == {"updates": 0, "loss_scale": 2.0**39, "good_steps": 0}
        assert not good.skipped and good.grad_norm < 10


def broken(context: Any, case: Case) -> str:
    with engine_of(context, case) as engine:
        for chunk in engine.chunks():
            if chunk.name == "model.norm.weight":
                chunk.tensor.fill_(torch.inf)
        engine.load(engine.scalars())
        batches: Any = micro_batches(case, 0, engine.data_rank, engine.data_ranks)
        return engine.step(batches, lr=1e-3).fault


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_gradient_that_is_not_finite_is_a_fault(ranks: Any, zero: int, precision: str) -> None:
    for message in ranks(2).run(broken, deepspeed({"zero": zero}, precision=precision)):
        assert "the gradient is not finite" in message and "\n" not in message


def asked_to_stop(context: Any, case: Case) -> list[bool]:
    with engine_of(context, case) as engine:
        batches: Any = micro_batches(case, 0, engine.data_rank, engine.data_ranks)
        return [engine.step(batches, lr=1e-3, stop=asks == context.rank).stop for asks in (1, 7)]


def test_one_rank_stops_all(ranks: Any) -> None:
    assert ranks(2).run(asked_to_stop, deepspeed({"zero": 1})) == [[True, False]] * 2


def surroundings(context: Any, case: Case) -> bool:
    """Whether an engine leaves Accelerate and the environment as they were. Its warnings are heard."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` says: it must not mind
    before = state_around()
    with engine_of(context, case) as engine:
        train(engine, case)
        logger = logging.getLogger("DeepSpeed")
        assert logger.isEnabledFor(logging.WARNING) and not logger.isEnabledFor(logging.INFO)
        assert [handler.stream for handler in logger.handlers] == [sys.stderr]  # type: ignore[attr-defined]
    same = before == state_around()
    del os.environ["ACCELERATE_USE_CPU"]
    return same


def state_around() -> list[dict[str, Any]]:
    from accelerate.state import AcceleratorState, PartialState

    return [dict(os.environ), dict(PartialState._shared_state), dict(AcceleratorState._shared_state)]


def test_nothing_is_left_behind(ranks: Any) -> None:
    assert all(ranks(2).run(surroundings, deepspeed({"zero": 1}, steps=1)))
