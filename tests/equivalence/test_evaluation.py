"""Evaluation gives the same sum and count on every layout, and leaves no trace in training."""

from typing import Any

import pytest
from runs import Alone, Case, build, micro_batches


def evaluated(context: Any, parallel: dict[str, Any], tied: bool) -> list[tuple[float, float]]:
    case = Case(parallel=parallel, model={"tie_embeddings": tied})
    engine = build(case, context.rank, context.world)

    def read(step: int) -> Any:
        return micro_batches(case, step, engine.data_rank, engine.data_ranks)

    found = [engine.evaluate(read(90))]
    for step in range(3):
        result = engine.step(read(step), lr=1e-3)
        found += [(result.loss_sum, result.grad_norm), engine.evaluate(read(90)), engine.evaluate(read(91))]
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 1}),
        (2, {"zero": 3}),
        (2, {"tp": 2}),
        (2, {"pp": 2}),
        (2, {"pp": 2, "schedule": "interleaved_1f1b"}),
        (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
        (4, {"pp": 2, "tp": 2}),
        (4, {"pp": 2, "zero": 2}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_evaluation_does_not_depend_on_the_layout(
    ranks: Any, world: int, parallel: dict[str, Any], tied: bool
) -> None:
    expected = evaluated(Alone(), {}, tied)
    for found in ranks(world).run(evaluated, parallel, tied):
        for got, want in zip(found, expected, strict=True):
            assert got == pytest.approx(want, rel=1e-5)
