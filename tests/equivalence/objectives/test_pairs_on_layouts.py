"""Models that embed pairs: every layout's losses, gradients and recall are one process's."""

import functools
from typing import Any

import pytest

from pair_runs import PairCase, pair_curve
from runs import Alone, distance

TOLERANCE = 1e-5


@functools.cache
def reference(steps: int) -> list[tuple[float, float]]:
    return pair_curve(Alone(), PairCase(steps=steps))


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "micro_batch", "parallel"),
    [
        (2, 2, {"zero": 3}),
        (2, 4, {"tp": 2}),
        (2, 4, {"cp": 2}),
        (2, 4, {"pp": 2}),
        (4, 2, {"tp": 2, "zero": 1}),
        (4, 2, {"pp": 2, "tp": 2}),
        (4, 1, {"cp": 2, "zero": 2}),
        (4, 2, {"cp": 2, "pp": 2, "zero": 0, "recompute": "full"}),
        (2, 2, {"engine": "deepspeed", "zero": 2}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_pairs_of_texts(
    ranks: Any, world: int, micro_batch: int, parallel: dict[str, Any], steps: int
) -> None:
    case = PairCase(parallel=parallel, micro_batch=micro_batch, steps=steps)
    found = ranks(world).run(pair_curve, case)
    assert all(other == found[0] for other in found)
    assert distance(found[0], reference(steps)) < TOLERANCE
