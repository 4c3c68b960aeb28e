"""Law 1 for every objective on every model that takes it: no layout shows in a run.

A part in which every case and every layout occurs runs for a few steps; all of them for 20 steps are slow.
`bench/parity.py objectives` measures all.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from objective_cases import CASES
from objective_parity import (
    BOUND,
    LAYOUTS,
    Combination,
    combinations,
    compare,
    kinds,
    offered_pairs,
    refused_pair,
)
from objective_runs import Run, Sections, run
from runs import Alone, distance
from trainer.optim.schedule import learning_rate

ROOT = Path(__file__).parents[3]
BERT = "masked_lm, encoder as BERT, next sentence"
# Each case where it has most to go wrong: biases, tied matrices and learned positions under tp; windows,
# documents, prefixes and places under cp; two towers under pp; losses over all rows under dp.
COVERING = {
    "causal_lm, decoder": ["dp2, ZeRO 0"],
    "causal_lm, decoder as GPT-2": ["tp2"],
    "causal_lm, decoder as Gemma 2": ["cp2"],
    "causal_lm, own decoder": ["dp2×tp2"],
    "fill_in_the_middle, decoder": ["cp2"],
    "fill_in_the_middle, own decoder": ["dp2, ZeRO 1"],
    "span_corruption, decoder": ["tp2", "cp2"],
    "span_corruption, own decoder": ["pp2"],
    "masked_lm, encoder": ["cp2×tp2", "pp2"],
    BERT: ["cp2", "pp2×tp2", "DeepSpeed, dp2, ZeRO 3"],
    "contrastive, text_pair": ["cp2×pp2, recomputed"],
    "clip, text_pair": ["dp2, ZeRO 3"],
    "siglip, text_pair": ["tp2"],
    "contrastive, image_text": ["dp2, ZeRO 2"],
    "clip, image_text": ["DeepSpeed, dp2, ZeRO 2"],
    "siglip, image_text": ["pp2×tp2, cut by cost"],
    "contrastive, vision": ["tp2"],
    "classification, vision": ["DeepSpeed, dp2, ZeRO 0"],
    "classification, vision with a class token": ["tp2"],
    "classification, vision pooled by attention": ["dp2×tp2", "dp2×pp2 ZBV, ZeRO 3"],
    "masked_images, vision": ["cp2"],
    "masked_images, vision, squares": ["pp2"],
    "classification, text_classes": ["DeepSpeed, dp2, ZeRO 1"],
    "classification, text_classes as BERT": ["pp2"],
    "instruction, decoder": ["cp2"],
    "instruction, own decoder": ["dp2, ZeRO 3"],
    "tags, token_classes as BERT": ["tp2"],
    "answers, token_classes": ["pp2"],
    "classification, own ConvNeXt": ["dp2, ZeRO 2", "pp2"],
}
CHOSEN = [Combination(case, layout) for case, layouts in COVERING.items() for layout in layouts]
SHORT = 4
PAIRS = {
    "causal_lm": {"decoder", "parallel_decoder"},
    "fill_in_the_middle": {"decoder", "parallel_decoder"},
    "span_corruption": {"decoder", "parallel_decoder"},
    "masked_lm": {"encoder"},
    "contrastive": {"text_pair", "image_text", "vision"},
    "clip": {"text_pair", "image_text"},
    "siglip": {"text_pair", "image_text"},
    "classification": {"text_classes", "vision", "convnext"},
    "masked_images": {"vision"},
    "instruction": {"decoder", "parallel_decoder"},
    "tags": {"token_classes"},
    "answers": {"token_classes"},
}
POOLED = "pools all positions of a picture, which cp would part: give its ranks to the data axes"
CONVOLUTIONS = "convolutions are not split over ranks: give these ranks to the data axes or to parallel.pp"
# Kind of model, and its head where that decides → axes that are refused and why.
REFUSED_LAYOUTS = {
    "image_text": (("cp",), "a picture and its caption are two sequences: give its ranks to the data axes"),
    "vision classes": (("cp",), f"model.head=classes {POOLED}"),
    "vision embedding": (("cp",), f"model.head=embedding {POOLED}"),
    "text_classes": (
        ("cp",),
        "model.kind=text_classes needs all tokens of a text together, which cp would part",
    ),
    "token_classes": (
        ("cp",),
        "model.kind=token_classes needs all tokens of a text together, which cp would part",
    ),
    "convnext.config:ConvNeXtConfig": (("tp", "cp"), CONVOLUTIONS),
}


def by_world(some: Iterable[Combination]) -> list[Combination]:
    """A pool of ranks once started is used to the end."""
    return sorted(some, key=lambda one: one.world)


@pytest.mark.parametrize(
    ("one", "steps"),
    [
        *((one, SHORT) for one in by_world(CHOSEN)),
        *(pytest.param(one, 20, marks=pytest.mark.slow) for one in by_world(combinations())),
    ],
    ids=str,
)
def test_no_layout_shows(ranks: Any, one: Combination, steps: int) -> None:
    if LAYOUTS[one.layout].parallel.get("engine") == "deepspeed":
        pytest.importorskip("deepspeed")
    if said := one.refusal():
        pytest.skip(said)
    found = compare(ranks, one, steps)
    assert found.worst < BOUND, found


@pytest.mark.parametrize(
    ("case", "layer"),
    [
        ("classification, text_classes as BERT", "tanh"),
        ("answers, token_classes", "gelu"),
        ("tags, token_classes as BERT", "gelu"),
    ],
)
def test_no_layout_shows_in_a_layer_before_classes(
    case: str, layer: str, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_layer = replace(CASES[case], model=CASES[case].model | {"head_layer": layer})
    name = f"{case}, {layer}"  # its own: the reference is kept by it
    monkeypatch.setitem(CASES, name, with_layer)
    found = compare(ranks, Combination(name, "tp2"), SHORT)
    assert found.worst < BOUND, found


def test_every_case_and_layout_is_in_the_part_that_is_not_slow() -> None:
    assert {one.case for one in CHOSEN} == set(CASES)
    assert {one.layout for one in CHOSEN} == set(LAYOUTS)
    assert not any(one.refusal() for one in CHOSEN)


def test_every_objective_has_a_case_with_every_model_that_takes_it_and_refuses_the_others() -> None:
    objectives, models = kinds()
    assert {(o, m.partition(".")[0]) for o, m in offered_pairs()} == {
        (objective, model) for objective, some in PAIRS.items() for model in some
    }
    for objective in objectives:
        for model in models:
            said = refused_pair(objective, model)
            if (objective, model) not in offered_pairs():
                assert said.startswith(f"objective.kind={objective}: needs a model ") and "\n" not in said
                assert f"model.kind={model} " in said


def test_what_is_refused_is_refused_by_name() -> None:
    for one in combinations():
        model, layout = CASES[one.case].model, LAYOUTS[one.layout]
        kind = model["kind"]
        head = f" {model.get('head', 'classes')}" if kind == "vision" else ""
        axes, why = REFUSED_LAYOUTS.get(kind + head, ((), ""))
        said = one.refusal()
        if any(layout.size(axis) > 1 for axis in axes):
            assert said.startswith("parallel.") and why in said and "\n" not in said
        else:
            assert not said, one


def test_the_whole_has_been_measured_and_the_table_says_what_is_refused() -> None:
    """`python bench/parity.py objectives` runs what is missing."""
    rows = json.loads((ROOT / "bench/results/parity-objectives.json").read_text())["runs"]
    assert rows.keys() == {str(one) for one in combinations() if not one.refusal()}
    for name, row in rows.items():
        assert "error" not in row and max(row.values()) < BOUND, f"{name}: {row}"
    table = (ROOT / "docs/measured/parity-objectives.md").read_text()
    refusals = {one.refusal() for one in combinations()}
    refusals |= {
        refused_pair(objective, model).replace(f"model.kind={model}", "model.kind=…")
        for objective in kinds()[0]
        for model in kinds()[1]
        if (objective, model) not in offered_pairs()
    }
    assert all(message in table for message in refusals)


@pytest.mark.parametrize(
    "case", ["fill_in_the_middle, decoder", "span_corruption, own decoder", "masked_lm, encoder", BERT]
)
def test_no_micro_batch_shows(case: str) -> None:
    sections = Combination(case, "dp2, ZeRO 0").sections(steps=SHORT)
    found = [
        run(Alone(), sections | {"parallel": {}, "train": sections["train"] | {"micro_batch": size}}).curve
        for size in (1, 4, 8)
    ]
    assert max(distance(one, found[0]) for one in found[1:]) < BOUND


def with_places_of_the_first_part(context: Any, sections: Sections) -> Run:
    """A planted fault: under cp, places that are in another rank's part are taken for this rank's first."""
    from common.objective import ModelInputs

    def without_places(x: Any, kwargs: Any, dims: Any, places: Any) -> ModelInputs:
        shifted = {name: t.clamp(min=0) if name in places else t for name, t in kwargs.items()}
        return ModelInputs(x, shifted, dims, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.transforms.context.ModelInputs", without_places)
        return run(context, sections)


def with_another_last_step(context: Any, sections: Sections) -> Run:
    """A planted fault: the last update is a hundredth too large, which no loss and no gradient shows."""

    def rate(step: int, cfg: Any, total: int) -> float:
        return learning_rate(step, cfg, total) * (1.01 if step == total - 1 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("objective_runs.learning_rate", rate)
        return run(context, sections)


def test_planted_faults_are_found(ranks: Any) -> None:
    one = Combination(BERT, "cp2")
    found = compare(ranks, one, SHORT, train=with_places_of_the_first_part)
    assert min(found.loss, found.grad_norm, found.evaluation, found.weights) > 1e-3
    late = compare(ranks, one, SHORT, train=with_another_last_step)
    assert max(late.loss, late.grad_norm) < BOUND < late.weights
