"""Law 1 for classification (pictures, texts), masked images, two views: every axis against one process."""

from typing import Any

import pytest

from picture_runs import PictureCase, curve, reference
from runs import distance

TOLERANCE = 1e-5
VIT = {"kind": "vision", "image_size": 16, "patch_size": 4, "layers": 2, "hidden": 32, "heads": 4}
VIT |= {"ffn_hidden": 48, "classes": 5}
CLASSES = {"kind": "classification", "label_smoothing": 0.1}
# Every kind of head, pooling and position.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean": ({**VIT, "positions": "sincos"}, CLASSES),
    "class": ({**VIT, "class_token": True, "registers": 3, "pool": "class"}, CLASSES),
    "attention": ({**VIT, "pool": "attention", "embed_norm": True, "patch_bias": False}, CLASSES),
    "masked": ({**VIT, "head": "pixels"}, {"kind": "masked_images", "mask_ratio": 0.5}),
    "squares": (
        {**VIT, "head": "pixels", "class_token": True, "registers": 3},
        {"kind": "masked_images", "mask_patch": 8, "distance": "l2", "normalise_patches": True},
    ),
}
SIMCLR = {"kind": "contrastive", "negatives": "both_sides", "temperature": 0.5}
CASES["simclr"] = ({**VIT, "head": "embedding", "embedding": 8, "embedding_hidden": 24}, SIMCLR)
TEXT = {"kind": "text_classes", "layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": 128}
CASES["text"] = ({**TEXT, "classes": 5}, CLASSES)
CASES["bert"] = (
    {**TEXT, "classes": 5, "pool": "first", "norm_place": "post", "biases": True, "positions": "learned"},
    CLASSES,
)
# Every case, axis and stage once; then the rest.
COVERING: list[tuple[str, int, dict[str, Any]]] = [
    ("mean", 2, {"zero": 1}),
    ("class", 2, {"tp": 2}),
    ("squares", 2, {"pp": 2}),
    ("masked", 2, {"cp": 2}),
    ("attention", 4, {"tp": 2, "zero": 3}),
    ("text", 2, {"zero": 3}),
    ("bert", 2, {"pp": 2}),
    ("simclr", 2, {"zero": 2}),
    ("masked", 4, {"pp": 2, "tp": 2}),
]
MORE: list[tuple[str, int, dict[str, Any]]] = [
    ("mean", 2, {"zero": 0}),
    ("class", 2, {"zero": 1}),
    ("masked", 2, {"zero": 2}),
    ("squares", 2, {"zero": 3}),
    ("mean", 2, {"tp": 2}),
    ("attention", 2, {"tp": 2}),
    ("masked", 2, {"tp": 2}),
    ("class", 2, {"pp": 2}),
    ("squares", 2, {"cp": 2}),
    ("text", 2, {"tp": 2}),
    ("bert", 4, {"tp": 2}),
    ("simclr", 2, {"tp": 2}),
    ("simclr", 2, {"pp": 2}),
    ("squares", 4, {"tp": 2}),
    ("class", 4, {"pp": 2, "tp": 2}),
]
LAYOUTS = [*COVERING, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def case_of(name: str, world: int, parallel: dict[str, Any], steps: int) -> PictureCase:
    model, objective = CASES[name]
    dp = world // (parallel.get("tp", 1) * parallel.get("pp", 1) * parallel.get("cp", 1))
    micro = 8 // dp // (4 if "pp" in parallel else 2)
    views = 2 if objective is SIMCLR else 1
    tokens = model["kind"] == "text_classes"
    # At 3e-3 the gradient of pooling by attention grows tenfold in 20 steps, and every rounding with it.
    shape = {"views": views, "tokens": tokens, "micro_batch": micro}
    return PictureCase(model, objective, parallel, lr=1e-3, steps=steps, **shape)


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "world", "parallel"), LAYOUTS, ids=label)
def test_layout_leaves_no_trace(
    ranks: Any, name: str, world: int, parallel: dict[str, Any], steps: int
) -> None:
    case = case_of(name, world, parallel, steps)
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < TOLERANCE
