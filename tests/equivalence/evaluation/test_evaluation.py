"""Evaluation gives the same sum and count on every layout, and leaves no trace in training."""

from typing import Any

import pytest
import torch.distributed as dist

from parallel.engine import Evaluation
from runs import Alone, Case, build, micro_batches


def sums(result: Evaluation) -> tuple[float, float]:
    return result.loss_sum, result.count


def evaluated(context: Any, parallel: dict[str, Any], tied: bool) -> list[tuple[float, float]]:
    case = Case(parallel=parallel, model={"tie_embeddings": tied})
    engine = build(case, context.rank, context.world)

    def read(step: int) -> Any:
        return micro_batches(case, step, engine.data_rank, engine.data_ranks)

    found = [sums(engine.evaluate(read(90)))]
    for step in range(3):
        result = engine.step(read(step), lr=1e-3)
        after = [sums(engine.evaluate(read(number))) for number in (90, 91)]
        found += [(result.loss_sum, result.grad_norm), *after]
    assert not engine.evaluate(read(90)).stop
    last = dist.is_initialized() and context.rank == context.world - 1
    assert engine.evaluate(read(90), stop=last or context.world == 1).stop, (
        "one rank asks, and every rank knows"
    )
    return found


LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero": 1}),
    (2, {"zero": 3}),
    (2, {"tp": 2}),
    (2, {"pp": 2}),
    (2, {"pp": 2, "schedule": "interleaved_1f1b"}),
    (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
    (4, {"pp": 2, "tp": 2}),
    (4, {"pp": 2, "zero": 2}),
]


# Tied embeddings where they lie in two stages, untied ones elsewhere; the rest is slow.
ALWAYS = [({"zero": 3}, False), ({"pp": 2, "tp": 2}, True), ({"pp": 2, "schedule": "zbv_zero_bubble"}, True)]


@pytest.mark.parametrize(
    ("world", "parallel", "tied"),
    [
        pytest.param(
            world,
            parallel,
            tied,
            id="-".join(f"{k}{v}" for k, v in parallel.items()) + ("-tied" if tied else ""),
            marks=[] if (parallel, tied) in ALWAYS else pytest.mark.slow,
        )
        for world, parallel in LAYOUTS
        for tied in (False, True)
    ],
)
def test_evaluation_does_not_depend_on_the_layout(
    ranks: Any, world: int, parallel: dict[str, Any], tied: bool
) -> None:
    expected = evaluated(Alone(), {}, tied)
    for found in ranks(world).run(evaluated, parallel, tied):
        for got, want in zip(found, expected, strict=True):
            assert got == pytest.approx(want, rel=1e-5)
