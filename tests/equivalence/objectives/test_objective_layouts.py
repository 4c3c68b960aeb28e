"""Law 1 for objectives that lay rows out anew or add to the loss of a token: no layout shows in a curve."""

from typing import Any

import pytest

from runs import Alone, Case, curve, distance, reference

TOLERANCE = 1e-5

OBJECTIVES: dict[str, dict[str, Any]] = {
    "span_corruption": {"kind": "span_corruption", "z_loss": 1e-3, "label_smoothing": 0.1},
    "fill_in_the_middle": {"kind": "fill_in_the_middle", "rate": 0.7},
    "causal_lm": {"kind": "causal_lm", "z_loss": 1e-3, "label_smoothing": 0.1},
}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    *((2, {"zero": zero}) for zero in (0, 1, 2, 3)),
    (2, {"tp": 2}),
    (2, {"cp": 2}),
    (2, {"pp": 2}),
    (2, {"pp": 2, "schedule": "interleaved_zero_bubble"}),
    (2, {"tp": 2, "recompute": "selective"}),
    (4, {"tp": 2, "zero": 3}),
    (4, {"pp": 2, "tp": 2}),
    (4, {"cp": 2, "tp": 2}),
    *((2, {"engine": "deepspeed", "zero": zero}) for zero in (0, 1, 2, 3)),
]
# What causal_lm has not: an input without a sequence, rows of another length, the options of the head.
ALWAYS = [
    ("span_corruption", 2, {"zero": 3}),
    ("span_corruption", 2, {"tp": 2}),
    ("span_corruption", 2, {"cp": 2}),
    ("span_corruption", 2, {"pp": 2}),
    ("fill_in_the_middle", 2, {"cp": 2}),
]


def case(kind: str, parallel: dict[str, Any], steps: int) -> Case:
    """Deep enough for the schedule, and a vocabulary with room for the objective's ids."""
    pipeline = "pp" in parallel
    documents = kind == "fill_in_the_middle"
    return Case(
        parallel=parallel,
        model={"layers": 4 if pipeline else 2, "vocab": 144, "kv_heads": 4},
        objective=OBJECTIVES[kind],
        micro_batch=1 if pipeline or parallel.get("tp", 1) * parallel.get("cp", 1) < 4 else 2,
        steps=steps,
        documents=documents,
    )


@pytest.mark.parametrize(
    ("kind", "world", "parallel", "steps"),
    [
        *((*one, 5) for one in ALWAYS),
        *(pytest.param(kind, *one, 20, marks=pytest.mark.slow) for kind in OBJECTIVES for one in LAYOUTS),
    ],
    ids=str,
)
def test_no_layout_shows(ranks: Any, kind: str, world: int, parallel: dict[str, Any], steps: int) -> None:
    this = case(kind, parallel, steps)
    curves = ranks(world).run(curve, this)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(this)) < TOLERANCE


@pytest.mark.parametrize("kind", ["span_corruption", "fill_in_the_middle"])
def test_no_micro_batch_shows(kind: str) -> None:
    found = [
        curve(
            Alone(),
            Case(objective=OBJECTIVES[kind], model={"layers": 2, "vocab": 144}, micro_batch=size, steps=5),
        )
        for size in (1, 4, 8)
    ]
    assert max(distance(one, found[0]) for one in found[1:]) < TOLERANCE
