"""Models that embed pairs: every layout's losses, gradients and recall are one process's."""

import functools
from typing import Any

import pytest

from pair_runs import IMAGE_TEXT, TWO_VIEWS, PairCase, pair_curve
from runs import Alone, distance
from trainer.objectives.contrastive_config import ContrastiveConfig, SiglipConfig

TOLERANCE = 1e-5


@functools.cache
def reference(steps: int, kind: str) -> list[tuple[float, float]]:
    return pair_curve(Alone(), case_of(kind, steps=steps))


def case_of(kind: str, **settings: Any) -> PairCase:
    if kind == "texts":
        return PairCase(**settings)
    if kind == "pictures":
        return PairCase(model=IMAGE_TEXT, objective=SiglipConfig(), **settings)
    simclr = ContrastiveConfig(temperature=0.2, negatives="both_sides")
    return PairCase(model=TWO_VIEWS, objective=simclr, **settings)


def more(*layouts: tuple[int, int, dict[str, Any]]) -> list[Any]:
    return [pytest.param(*one, marks=pytest.mark.slow) for one in layouts]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def check(ranks: Any, world: int, case: PairCase, kind: str) -> None:
    found = ranks(world).run(pair_curve, case)
    assert all(other == found[0] for other in found)
    assert distance(found[0], reference(case.steps, kind)) < TOLERANCE


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "micro_batch", "parallel"),
    [
        (2, 2, {"zero": 3}),
        (4, 2, {"tp": 2, "zero": 1}),
        (4, 2, {"cp": 2, "pp": 2, "zero": 0, "recompute": "full"}),
        (2, 2, {"engine": "deepspeed", "zero": 2}),
        *more(*((2, 4, {axis: 2}) for axis in ("tp", "cp", "pp"))),
        *more((4, 2, {"pp": 2, "tp": 2}), (4, 1, {"cp": 2, "zero": 2})),
    ],
    ids=label,
)
def test_pairs_of_texts(
    ranks: Any, world: int, micro_batch: int, parallel: dict[str, Any], steps: int
) -> None:
    check(ranks, world, case_of("texts", parallel=parallel, micro_batch=micro_batch, steps=steps), "texts")


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "micro_batch", "parallel"),
    [
        (2, 2, {"zero": 3}),
        (4, 2, {"pp": 2, "tp": 2, "cut": "cost"}),
        *more((2, 4, {"tp": 2}), (2, 4, {"pp": 2})),
        *more((2, 2, {"engine": "deepspeed", "zero": 3, "recompute": "full"})),
    ],
    ids=label,
)
def test_pictures_with_captions(
    ranks: Any, world: int, micro_batch: int, parallel: dict[str, Any], steps: int
) -> None:
    check(
        ranks, world, case_of("pictures", parallel=parallel, micro_batch=micro_batch, steps=steps), "pictures"
    )


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "micro_batch", "parallel"),
    [(2, 4, {"tp": 2}), *more((2, 2, {"zero": 2}), (2, 4, {"pp": 2, "schedule": "zbv_zero_bubble"}))],
    ids=label,
)
def test_two_views_of_a_picture(
    ranks: Any, world: int, micro_batch: int, parallel: dict[str, Any], steps: int
) -> None:
    check(ranks, world, case_of("views", parallel=parallel, micro_batch=micro_batch, steps=steps), "views")
