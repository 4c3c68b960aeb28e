"""A global batch of which no target is counted has no mean loss: nothing is updated, and the run goes on."""

from typing import Any

import pytest
import torch

from runs import SEQ, Batch, Case, build, micro_batches

EMPTY_STEP = 2


def train_around(context: Any, case: Case, empty: bool) -> tuple[list[Any], dict[str, Any], list[Any]]:
    """Four steps, with one of masked targets only among them or without it: results, scalars, tensors."""
    engine = build(case, context.rank, context.world)
    try:
        results = []
        for step in range(4):
            batches = micro_batches(case, step, engine.data_rank, engine.data_ranks)
            if step == EMPTY_STEP and empty:
                masked = torch.full((case.micro_batch, SEQ), -1)
                nothing = [
                    Batch({**batch.tensors, "following": masked}, batch.sequences) for batch in batches
                ]
                results.append(engine.step(nothing, lr=case.lr))
            results.append(engine.step(batches, lr=case.lr))
        return results, engine.scalars(), [chunk.tensor.clone() for chunk in engine.chunks()]
    finally:
        engine.close()


@pytest.mark.parametrize(
    "case",
    [
        Case({"zero": 1}),
        Case({"zero": 2}, precision="fp16"),
        pytest.param(Case({"engine": "deepspeed", "zero": 0}), marks=pytest.mark.slow),
        Case({"engine": "deepspeed", "zero": 2}, precision="bf16"),
        pytest.param(Case({"engine": "deepspeed", "zero": 3}, precision="fp16"), marks=pytest.mark.slow),
    ],
    ids=lambda case: f"{case.parallel.get('engine', 'torch')}-{case.parallel['zero']}-{case.precision}",
)
def test_nothing_is_updated_and_the_next_step_is_as_if_it_had_not_been(ranks: Any, case: Case) -> None:
    with_it = ranks(2).run(train_around, case, True)
    without = ranks(2).run(train_around, case, False)
    for (results, scalars, tensors), (others, other_scalars, other_tensors) in zip(with_it, without):
        skipped = results.pop(EMPTY_STEP)
        assert (skipped.loss_sum, skipped.count, skipped.grad_norm) == (0.0, 0.0, 0.0)
        assert skipped.skipped and not skipped.fault
        assert results == others and scalars == other_scalars
        assert all(map(torch.equal, tensors, other_tensors))
