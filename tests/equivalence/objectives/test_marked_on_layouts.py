"""Law 1 for the objectives of marked tokens: no layout shows in a curve."""

from typing import Any

import pytest

from runs import Case, curve, distance, reference

TOLERANCE = 1e-5
TOKENS: dict[str, Any] = {"kind": "token_classes", "layers": 2, "vocab": 144}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "instruction": ({"kind": "instruction"}, {"layers": 2, "vocab": 144, "kv_heads": 4}),
    "tags": ({"kind": "tags"}, TOKENS | {"classes": 4}),
    "answers": ({"kind": "answers"}, TOKENS | {"classes": 2, "norm_place": "post", "biases": True}),
}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    *((2, {"zero": zero}) for zero in (0, 1, 2, 3)),
    (2, {"tp": 2}),
    (2, {"pp": 2}),
    (4, {"tp": 2, "zero": 3}),
    (4, {"pp": 2, "tp": 2}),
    (2, {"engine": "deepspeed", "zero": 2}),
]
ALWAYS = [("tags", 2, {"tp": 2}), ("answers", 2, {"pp": 2}), ("instruction", 2, {"zero": 3})]


def case(kind: str, parallel: dict[str, Any], steps: int) -> Case:
    objective, model = CASES[kind]
    deeper = {"layers": 4} if "pp" in parallel else {}
    return Case(parallel=parallel, model=model | deeper, objective=objective, steps=steps, marked=True)


@pytest.mark.parametrize(
    ("kind", "world", "parallel", "steps"),
    [
        *((*one, 5) for one in ALWAYS),
        *(pytest.param(kind, *one, 20, marks=pytest.mark.slow) for kind in CASES for one in LAYOUTS),
        pytest.param("instruction", 2, {"cp": 2}, 20, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_layout_shows(ranks: Any, kind: str, world: int, parallel: dict[str, Any], steps: int) -> None:
    this = case(kind, parallel, steps)
    curves = ranks(world).run(curve, this)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(this)) < TOLERANCE
