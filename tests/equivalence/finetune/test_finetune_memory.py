"""What fine-tuning holds in memory: parameters once, and for trained ones a gradient and two moments."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from finetune_cases import METHODS, case_of
from parallel.parameters.sharded_parameter import ShardedParameter
from picture_runs import PictureCase, build, micro_batches
from ranks import RankContext, RankPools
from runs import Alone
from tensor_memory import live_bytes

WIDE = {"layers": 4, "hidden": 128, "heads": 4, "ffn_hidden": 256}


def wide(method: str, parallel: dict[str, Any] | None = None) -> PictureCase:
    case = case_of(method, parallel=parallel)
    return replace(case, model=case.model | WIDE)


def closed_form(case: PictureCase, ranks: int = 1) -> float:
    """Bytes on each of so many ranks: 4 for a frozen parameter, 16 for a trained one."""
    engine = build(replace(case, parallel={}), 0, 1)
    try:
        trained = sum(chunk.tensor.numel() for chunk in engine.chunks() if chunk.name.startswith("model."))
        frozen = sum(chunk.tensor.numel() for chunk in engine.frozen())
    finally:
        engine.close()
    return (16 * trained + 4 * frozen) / ranks


def gradients(parameters: Sequence[ShardedParameter]) -> list[torch.Tensor | None]:
    return [grad for one in parameters for grad in (one.tensor.grad, one.module_parameter.grad)]


def held(context: Any, case: PictureCase) -> int:
    """Bytes before an update, the whole of backward done, more than before the engine was built."""
    before, found = live_bytes(), []
    engine: Any = build(case, context.rank, context.world)
    try:
        engine.look_at_gradients(
            lambda parameters, _: found.append(live_bytes(gradients(parameters)) - before)
        )
        for step in range(2):
            engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
        return max(found)
    finally:
        engine.close()


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "lora" else pytest.mark.slow) for m in METHODS]
)
def test_memory_is_the_closed_form(method: str) -> None:
    case = wide(method)
    ratio = held(Alone(), case) / closed_form(case)
    assert 0.98 <= ratio <= 1.02, f"{ratio:.4f}"


@pytest.mark.slow
def test_memory_is_the_closed_form_of_a_shard(ranks: RankPools) -> None:
    case = wide("lora", {"dp_shard": 2, "zero": 3})
    found = ranks(2).run(held_here, case)
    assert all(one <= 1.02 * closed_form(case, ranks=2) for one in found)


def held_here(context: RankContext, case: PictureCase) -> int:
    """Bytes of this rank's parts of parameters, gradients and moments."""
    engine: Any = build(case, context.rank, context.world)
    found = []

    def look(parameters: Sequence[ShardedParameter], factor: float) -> None:
        memory = [one.tensor for one in engine._parameters] + [one.tensor.grad for one in parameters]
        memory += [moment for state in engine._optimizer.state.values() for moment in state.values()]
        found.append(sum(one.untyped_storage().nbytes() for one in memory))

    try:
        engine.look_at_gradients(look)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
        return max(found)
    finally:
        engine.close()
