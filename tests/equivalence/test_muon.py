"""Muon sees whole matrices on every layout, and the data ranks share the work of making them orthogonal."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from parallel.parameters.whole_matrices import WholeMatrices
from runs import (
    Alone,
    Case,
    assemble,
    assert_one_state,
    build,
    curve,
    distance,
    micro_batches,
    reference,
    state_of,
)
from trainer.optim import muon
from trainer.optim.muon import orthogonalize

# As for AdamW. Newton-Schulz multiplies a small singular value, and the rounding in it, by up to 480, but the
# result has singular values near one, so an update is off by no more than its gradient. Measured: 1e-7.
TOLERANCE = 1e-5
UNEVEN = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"zero": 0}),
    (2, {"tp": 2}),
    (4, {"dp_replicate": 2, "dp_shard": 2, "zero": 2}),
    (4, {"tp": 2, "zero": 3}),
    (4, {"pp": 2, "zero": 1}),
]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def case_of(parallel: dict[str, Any]) -> Case:
    micro = 1 if "pp" in parallel else 2
    return Case(parallel=parallel, model=UNEVEN, optimizer="muon", micro_batch=micro, steps=10)


@pytest.mark.parametrize(
    ("world", "parallel"),
    [pytest.param(*one, marks=pytest.mark.slow if number % 2 else ()) for number, one in enumerate(LAYOUTS)],
    ids=label,
)
def test_layout_leaves_no_trace(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    case = case_of(parallel)
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < TOLERANCE


def map_one_too_far(context: Any, case: Case) -> list[tuple[float, float]]:
    """A fault to find: a rank's rows of the next matrix instead of its own."""
    right = WholeMatrices._map_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            WholeMatrices, "_map_shards", lambda self, parts, f: right(self, [*parts[1:], parts[0]], f)
        )
        return curve(context, case)


def test_a_matrix_from_another_rank_is_noticed(ranks: Any) -> None:
    case = replace(case_of({"zero": 1}), steps=3)
    assert distance(ranks(2).run(map_one_too_far, case)[0], reference(case)) > TOLERANCE


def one_step(context: Any, case: Case) -> tuple[int, Any]:
    """How many matrices this rank makes orthogonal in a step, and its state after it."""
    count = 0

    def counted(matrix: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return orthogonalize(matrix)

    engine = build(case, context.rank, context.world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "orthogonalize", counted)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-2)
    return count, state_of(engine)


@pytest.mark.parametrize("zero", [0, 1])
def test_each_matrix_is_one_ranks_work(ranks: Any, zero: int) -> None:
    """28 matrices in 4 blocks: 4 each of wq and wo, wk and wv, w1 and w3, w2."""
    case = case_of({"zero": zero})
    alone, whole = one_step(Alone(), replace(case, parallel={}))
    assert alone == 28
    counts, states = zip(*ranks(4).run(one_step, case))
    assert counts == (7, 7, 7, 7)
    first = assemble([state_of(build(replace(case, parallel={}), 0, 1))])
    assert_one_state(assemble(list(states)), assemble([whole]), first)


def test_result_is_semi_orthogonal() -> None:
    for shape in ((20, 50), (50, 20), (33, 33)):
        draw = torch.Generator().manual_seed(1)
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=draw)))
        assert values.max() < 1.25 and values.median() > 0.65
