"""Context parallelism against one process, alone and with every other axis."""

from dataclasses import replace
from typing import Any

import pytest

import runs
from common.model_plan import ModelPlan
from ranks import RankFailure
from runs import Case, curve, distance, reference
from trainer.models.decoder.config import DecoderConfig


def faulty_curve(context: Any, case: Case) -> list[tuple[float, float]]:
    """Attention left inside each rank's slice of the sequence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.torch_engine.parallelize.context_parallel", lambda *args: None)
        return curve(context, case)


@pytest.mark.parametrize(
    ("world", "parallel", "documents"),
    [
        (2, {"cp": 2}, False),
        pytest.param(2, {"cp": 2, "zero": 0}, True, marks=pytest.mark.slow),
        pytest.param(4, {"cp": 2, "zero": 2}, False, marks=pytest.mark.slow),
        (4, {"cp": 2, "zero": 3, "recompute": "full"}, True),
        (4, {"cp": 2, "tp": 2}, True),
        (4, {"cp": 2, "pp": 2}, True),
        (8, {"cp": 2, "tp": 2, "pp": 2}, False),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_context_parallelism(ranks: Any, world: int, parallel: dict[str, Any], documents: bool) -> None:
    case = Case(
        parallel=parallel, model={"layers": 2, "kv_heads": 4}, micro_batch=2, steps=5, documents=documents
    )
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves)
    assert distance(curves[0], reference(case)) < 1e-5


def test_attention_within_slices_is_found(ranks: Any) -> None:
    case = Case(parallel={"cp": 2}, model={"kv_heads": 4}, micro_batch=2, steps=2)
    assert distance(ranks(2).run(faulty_curve, case)[0], reference(case)) > 1e-4


def test_model_without_such_a_module_is_refused(ranks: Any) -> None:
    with pytest.raises(RankFailure, match=r"parallel\.cp=2: this kind of model"):
        ranks(2).run(plain_curve, Case(parallel={"cp": 2}, steps=1, micro_batch=2))


def plain_curve(context: Any, case: Case) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.MODELS, "decoder", PlainConfig)
        return curve(context, case)


class PlainConfig(DecoderConfig):
    def plan(self) -> ModelPlan:
        plan = super().plan()
        return replace(plan, tensor=tuple(rule for rule in plan.tensor if rule[1] != "attention_core"))
