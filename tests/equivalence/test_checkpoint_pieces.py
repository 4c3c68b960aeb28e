"""What ranks would save tiles the whole model once, and any layout goes on from what any other saved."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from runs import (
    Alone,
    Case,
    State,
    assemble,
    assert_one_state,
    build,
    distance,
    fill,
    reference,
    state_of,
    train,
)

TOLERANCE = 1e-5
STEPS = 4

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "zero3": (2, {"zero": 3}),
    "hsdp": (4, {"dp_replicate": 2, "dp_shard": 2, "zero": 2}),
    "replicas": (4, {"zero": 0}),
    "tp-zero1": (4, {"tp": 2}),
    "pp-tp": (4, {"pp": 2, "tp": 2}),
    "pp-v": (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
}
SIZES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    # 6 heads of 6: hidden 36 over 4 shards gives 9, 9, 9, 9; ffn 50 over tp 2 gives 25, then 13 and 12.
    "uneven": {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130},
}


def case_on(parallel: dict[str, Any], model: dict[str, Any]) -> Case:
    return Case(parallel=parallel, model=model, micro_batch=1 if "pp" in parallel else 2, steps=STEPS)


def train_and_save(context: Any, case: Case) -> State:
    engine = build(case, context.rank, context.world)
    train(engine, case)
    return state_of(engine)


def resume_and_train(
    context: Any, case: Case, whole: dict[str, Tensor], scalars: dict[str, Any]
) -> list[tuple[float, float]]:
    engine = build(
        replace(case, seed=99), context.rank, context.world
    )  # nothing may be left of its first values
    fill(engine, whole, scalars)
    return train(engine, case, first_step=STEPS)


def on(ranks: Any, world: int, function: Any, *args: Any) -> list[Any]:
    return ranks(world).run(function, *args) if world > 1 else [function(Alone(), *args)]


@pytest.mark.parametrize(
    "sizes", ["uneven", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != "uneven")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_tile_the_model_once(ranks: Any, layout: str, sizes: str) -> None:
    world, parallel = LAYOUTS[layout]
    states = on(ranks, world, train_and_save, replace(case_on(parallel, SIZES[sizes]), steps=1))
    first, expected = (
        assemble([train_and_save(Alone(), replace(case_on({}, SIZES[sizes]), steps=steps))])
        for steps in (0, 1)
    )
    assert_one_state(assemble(states), expected, first)
    assert {state.scalars["updates"] for state in states} == {1}


@pytest.mark.parametrize("world", [2, 4])
def test_replicas_share_the_writing(ranks: Any, world: int) -> None:
    states = ranks(world).run(train_and_save, replace(case_on({"zero": 0}, {}), steps=1))
    written = [sum(c.tensor.numel() for c in state.chunks if c.owned) for state in states]
    assert max(written) < 1.2 * sum(written) / world


SIX = [name for name in LAYOUTS if name != "replicas"]


# Every pair, with the real checkpointer, is in test_resume_anywhere; here a tied model goes once around.
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(*pair, marks=() if number % 2 else pytest.mark.slow)
        for number, pair in enumerate(zip(SIX, [*SIX[1:], SIX[0]]))
    ],
)
def test_resume_on_another_layout(ranks: Any, saved: Any, source: str, target: str) -> None:
    whole, scalars = saved(source)
    world, parallel = LAYOUTS[target]
    curves = on(ranks, world, resume_and_train, case_on(parallel, SIZES["tied"]), whole, scalars)
    uninterrupted = reference(replace(case_on({}, SIZES["tied"]), steps=2 * STEPS))
    assert distance(curves[0], uninterrupted[STEPS:]) < TOLERANCE


@pytest.fixture(scope="module")
def saved(ranks: Any) -> Any:
    """Layout name → (whole tensors, scalars) after STEPS steps on it."""
    made: dict[str, Any] = {}

    def save(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if name not in made:
            world, parallel = LAYOUTS[name]
            states = on(ranks, world, train_and_save, case_on(parallel, SIZES["tied"]))
            made[name] = assemble(states), states[0].scalars
        return made[name]

    return save
