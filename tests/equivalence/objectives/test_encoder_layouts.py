"""Masked tokens on an encoder, every step in fp32, against one process: BERT with next-sentence prediction,
and a modern one with documents and windows.
"""

from dataclasses import replace
from typing import Any

import pytest

from runs import VOCAB, Alone, Case, build, curve, distance, micro_batches, reference

TOLERANCE = 1e-5
MODEL: dict[str, Any] = {
    "kind": "encoder",
    "layers": 2,
    "vocab": VOCAB + 4,
}  # a mask and [CLS], over tp=4 too
BERT: dict[str, Any] = {
    "model": {
        **MODEL,
        "norm_place": "post",
        "activation": "gelu",
        "biases": True,
        "positions": "learned",
        "max_positions": 40,
        "token_types": 2,
        "next_sentence": True,
        "window": 0,
    },
    "objective": {"kind": "masked_lm", "next_sentence": True, "whole_words": True},
    "partners": True,
}
MODERN: dict[str, Any] = {
    "model": {**MODEL, "window": 5, "global_every": 2},
    "objective": {"kind": "masked_lm", "mask_rate": 0.3},
    "documents": True,
}
KINDS = {"bert": BERT, "modern": MODERN}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    *((2, {"zero": zero}) for zero in (0, 1, 2, 3)),
    (2, {"tp": 2}),
    (2, {"pp": 2}),
    (2, {"cp": 2}),
    (4, {"tp": 2}),  # with dp=2
    (4, {"pp": 2, "tp": 2}),
    (4, {"cp": 2, "tp": 2}),
    (4, {"pp": 2, "zero": 3, "schedule": "zbv_zero_bubble"}),
    *((2, {"engine": "deepspeed", "zero": zero}) for zero in (1, 3)),
]
# For one of the two kinds, the other has the rest.
OFTEN = {"bert": (0, 4, 6, 8, 12), "modern": (3, 5, 6, 7)}


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "world", "parallel"),
    [
        pytest.param(kind, *one, marks=[] if number in OFTEN[kind] else [pytest.mark.slow])
        for kind in KINDS
        for number, one in enumerate(LAYOUTS)
    ],
    ids=label,
)
def test_layout_leaves_no_trace(
    ranks: Any, kind: str, world: int, parallel: dict[str, Any], steps: int
) -> None:
    case = Case(parallel=parallel, micro_batch=1 if "pp" in parallel else 2, steps=steps, **KINDS[kind])
    if "schedule" in parallel:  # two stages on a rank
        case = replace(case, model=case.model | {"layers": 4})
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batch_leaves_no_trace(kind: str) -> None:
    found = [curve(Alone(), Case(micro_batch=size, steps=5, **KINDS[kind])) for size in (1, 8)]
    assert distance(*found) < TOLERANCE


def faulty_curve(context: Any, case: Case) -> list[tuple[float, float]]:
    """Places as on the first rank, on every rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.transforms.context.ModelInputs", without_places)
        return curve(context, case)


def without_places(x: Any, kwargs: Any, dims: Any, places: Any) -> Any:
    from common.objective import ModelInputs

    shifted = {n: t.clamp(min=0) if n in places else t for n, t in kwargs.items()}
    return ModelInputs(x, shifted, dims, places)


def test_places_of_another_ranks_part_would_be_seen(ranks: Any) -> None:
    case = Case(parallel={"cp": 2}, micro_batch=2, steps=1, **BERT)
    assert distance(ranks(2).run(faulty_curve, case)[0], reference(case)) > 1e-3


def evaluated(context: Any, case: Case) -> tuple[float, float, dict[str, tuple[float, float]]]:
    engine = build(case, context.rank, context.world)
    try:
        found = engine.evaluate(micro_batches(case, 0, engine.data_rank, engine.data_ranks))
        return found.loss_sum, found.count, dict(found.measures)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"tp": 2}),
        (2, {"cp": 2}),
        (2, {"pp": 2}),
        pytest.param(2, {"engine": "deepspeed"}, marks=pytest.mark.slow),
    ],
    ids=label,
)
@pytest.mark.parametrize("kind", ["bert", pytest.param("modern", marks=pytest.mark.slow)])
def test_accuracy_is_that_of_one_process(ranks: Any, kind: str, world: int, parallel: dict[str, Any]) -> None:
    case = Case(parallel=parallel, micro_batch=2, global_batch=32, **KINDS[kind])
    loss, count, expected = evaluated(Alone(), Case(micro_batch=2, global_batch=32, **KINDS[kind]))
    names = ["next_sentence_loss", "next_sentence_accuracy"] if kind == "bert" else []
    assert list(expected) == ["masked_accuracy", *names]
    assert expected["masked_accuracy"][1] == count > 40
    for found in ranks(world).run(evaluated, case):
        assert found[1] == count and abs(found[0] / loss - 1) < TOLERANCE
        for name, (total, of) in expected.items():
            assert found[2][name][1] == of and abs(found[2][name][0] - total) < 1e-4 * of, name
