"""One step of the DeepSpeed engine: overflow, faults, a wish to stop; and what it leaves in the process."""

import logging
import os
import sys
from typing import Any

import pytest
import torch

from deepspeed_cases import deepspeed, engine_of
from runs import (
    Case,
    micro_batches,
    state_of,
    train,
)

pytest.importorskip("deepspeed")


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
