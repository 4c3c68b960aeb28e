"""Fine-tuning on layouts: the curve and the state of one process, and what is frozen stays as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_cases import METHODS, case_of
from parallel.engine import Chunk, Engine
from parallel.torch_engine import parallelize
from picture_runs import PictureCase, build, reference, train
from ranks import RankContext, RankPools
from runs import Alone, assemble, assert_one_state, distance, state_of
from trainer.models.tuned.plan import is_added

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2 zero0": (2, {"dp_shard": 2, "zero": 0}),
    "dp2 zero1": (2, {"dp_shard": 2, "zero": 1}),
    "dp2 zero2": (2, {"dp_shard": 2, "zero": 2}),
    "dp2 zero3": (2, {"dp_shard": 2, "zero": 3}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "pp2 interleaved_zero_bubble": (2, {"pp": 2, "schedule": "interleaved_zero_bubble"}),
    "hsdp": (4, {"dp_replicate": 2, "dp_shard": 2, "zero": 3}),
    "dp2 tp2": (4, {"dp_shard": 2, "tp": 2, "zero": 2}),
    "pp2 tp2": (4, {"pp": 2, "tp": 2}),
    "pp2 dp2": (4, {"pp": 2, "dp_shard": 2, "zero": 3}),
}


def followed(context: Any, case: PictureCase) -> tuple[list[tuple[float, float]], Any, set[str]]:
    """Train; return the curve, the state, and the names of the weights that have moved on this rank."""
    engine = build(case, context.rank, context.world)
    try:
        before = {chunk.name + str(chunk.offset): chunk.tensor.clone() for chunk in weights(engine)}
        curve = train(engine, case)
        moved = {
            chunk.name.removeprefix("model.")
            for chunk in weights(engine)
            if not torch.equal(chunk.tensor, before[chunk.name + str(chunk.offset)])
        }
        return curve, state_of(engine), moved
    finally:
        engine.close()


def weights(engine: Engine) -> list[Chunk]:
    return [*engine.frozen(), *(chunk for chunk in engine.chunks() if chunk.name.startswith("model."))]


def may_move(name: str, case: PictureCase) -> bool:
    return case.finetune["method"] == "full" or is_added(name) or name.startswith("head.")


def one_process(case: PictureCase) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    curve, state, _ = followed(Alone(), replace(case, parallel={}))
    return curve, assemble([state])


def without_roundings(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases of keys: a softmax does not change with them, so their gradients are roundings."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("wk.bias")}


def check(ranks: RankPools, case: PictureCase, world: int) -> None:
    found = ranks(world).run(followed, case)
    expected, state = one_process(case)
    assert distance(found[0][0], expected) <= 1e-5
    whole = assemble([one for _, one, _ in found])
    assert_one_state(without_roundings(whole), without_roundings(state))
    moved = {name for _, _, of_rank in found for name in of_rank}
    assert moved and all(may_move(name, case) for name in moved)


FAST = [("lora", "tp2"), ("adapters", "dp2 zero3"), ("probe", "pp2")]


@pytest.mark.parametrize(("method", "layout"), FAST)
def test_a_layout_fine_tunes_as_one_process(ranks: RankPools, method: str, layout: str) -> None:
    world, parallel = LAYOUTS[layout]
    check(ranks, case_of(method, parallel=parallel), world)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_layout_fine_tunes_as_one_process(
    ranks: RankPools, method: str, layout: str, pictures: bool
) -> None:
    world, parallel = LAYOUTS[layout]
    check(ranks, case_of(method, pictures=pictures, parallel=parallel), world)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_trains_has_gradients_and_state(method: str) -> None:
    engine = build(case_of(method), 0, 1)
    try:
        trained = {chunk.name.partition(".")[2] for chunk in engine.chunks() if chunk.name[:6] == "model."}
        state = {chunk.name.split(".", 2)[2] for chunk in engine.chunks() if chunk.name[:6] == "optim."}
        frozen = {chunk.name.removeprefix("model.") for chunk in engine.frozen()}
        assert trained == state and not trained & frozen
        assert {"head.project.weight", "head.project.bias"} <= trained
        if method == "full":
            assert not frozen
        else:
            assert all(is_added(name) or name.startswith("head.") for name in trained)
            assert "layers.0.attention.wq.weight" in frozen and "embed.weight" in frozen
    finally:
        engine.close()


def test_the_first_step_is_the_base_model_s() -> None:
    losses = {method: reference(case_of(method))[0][0] for method in METHODS}
    assert losses["lora"] == losses["adapters"] == losses["probe"] == losses["full"]


@pytest.mark.slow
def test_a_lora_that_is_not_summed_over_tp_is_found(ranks: RankPools) -> None:
    case = case_of("lora", parallel={"tp": 2})
    assert distance(ranks(2).run(with_fault, case)[0], reference(case)) > 1e-3


def with_fault(context: RankContext, case: PictureCase) -> list[tuple[float, float]]:
    """Train with LoRA's A of column layers, and B of row layers, whose gradients tp does not sum."""
    engine: Any = build(case, context.rank, context.world)
    gradients = engine._gradients
    summed = gradients.sum_shared

    def without() -> None:
        kept = gradients._parameters
        gradients._parameters = [one for one in kept if not is_added(one.name)]
        summed()
        gradients._parameters = kept

    gradients.sum_shared = without
    try:
        return train(engine, case)
    finally:
        engine.close()


def test_a_frozen_parameter_that_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("probe")
    _, _, moved = followed(Alone(), case)
    assert moved and all(may_move(name, case) for name in moved)
    monkeypatch.setattr(parallelize, "freeze", lambda model, plan: None)
    _, _, moved = followed(Alone(), case)
    assert not all(may_move(name, case) for name in moved)
