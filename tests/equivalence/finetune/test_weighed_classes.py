"""Weights of classes on layouts, DeepSpeed among them: one curve, and each target counted as 1."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_cases import case_of
from picture_runs import CLASSES, PictureCase, build, micro_batches
from ranks import RankPools
from runs import Alone, distance

WEIGHTS = [4.0, 0.0, 1.0, 1.0, 2.5]
STEPS = 6


def weighed(parallel: dict[str, Any]) -> PictureCase:
    case = case_of("full", parallel=parallel)
    return replace(case, finetune={"method": "full", "class_weights": WEIGHTS}, micro_batch=2)


def followed(context: Any, case: PictureCase) -> tuple[list[tuple[float, float]], list[int], list[float]]:
    """Curve, targets and counts of some steps."""
    engine = build(case, context.rank, context.world)
    try:
        steps = [
            engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
            for step in range(STEPS)
        ]
    finally:
        engine.close()
    curve = [(one.loss_sum / one.count, one.grad_norm) for one in steps]
    return curve, [one.targets for one in steps], [one.count for one in steps]


def labelled(case: PictureCase) -> list[int]:
    batches = (micro_batches(case, step, 0, 1) for step in range(STEPS))
    return [sum(int((one.tensors["label"] >= 0).sum()) for one in step) for step in batches]


LAYOUTS: list[dict[str, Any]] = [
    {"tp": 2},
    {"pp": 2},
    {"dp_shard": 2, "zero": 3},
    {"engine": "deepspeed", "zero": 0},
    {"engine": "deepspeed", "zero": 2},
]


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_a_layout_weighs_and_counts_as_one_process(ranks: RankPools, parallel: dict[str, Any]) -> None:
    if "engine" in parallel:
        pytest.importorskip("deepspeed")
    assert len(WEIGHTS) == CLASSES
    expected, targets, counts = followed(Alone(), weighed({}))
    assert targets == labelled(weighed({}))
    assert any(abs(target - count) > 0.5 for target, count in zip(targets, counts, strict=True))
    for curve, found, _ in ranks(2).run(followed, weighed(parallel)):
        assert distance(curve, expected) <= 1e-5
        assert found == targets
