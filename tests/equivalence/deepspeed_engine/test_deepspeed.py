"""The second engine against the first: the same curve, whatever ZeRO stage, offloading and precision."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from deepspeed_cases import LAYOUTS, OFFLOADED, STEPS, TOLERANCE, curve, deepspeed, label
from parallel.deepspeed_engine.engine import DeepSpeedEngine
from runs import SEQ, Case, distance, reference

pytest.importorskip("deepspeed")


def check(ranks: Any, world: int, case: Case, tolerance: float = TOLERANCE) -> None:
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < tolerance


# -- the curve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", LAYOUTS, ids=label)
def test_stage_and_offload_leave_no_trace(ranks: Any, parallel: dict[str, Any]) -> None:
    check(ranks, 2, deepspeed(parallel, steps=5))


@pytest.mark.parametrize(
    "parallel",
    [pytest.param({"zero": 2}, marks=pytest.mark.slow), {"zero": 3, "recompute": "full"}],
    ids=label,
)
def test_four_ranks_tied_embeddings_documents(ranks: Any, parallel: dict[str, Any]) -> None:
    # Width 36 and vocabulary 130: shares end inside rows, and the last ones are padded.
    model = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130, "tie_embeddings": True}
    check(ranks, 4, deepspeed(parallel, model=model, documents=True, micro_batch=1, steps=STEPS))


# Against fp32, with test_precision's bounds: a weight is rounded to 8 bits (bf16) or 11 (fp16), an
# activation at every operator. Without ZeRO, gradients are also added up in that type.
@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        ({"zero": 0}, "bf16"),
        pytest.param({"zero": 0}, "fp16", marks=pytest.mark.slow),
        pytest.param({"zero": 1}, "bf16", marks=pytest.mark.slow),
        ({"zero": 2}, "fp16"),
        (OFFLOADED, "bf16"),
    ],
    ids=label,
)
def test_half_precision_follows_fp32(ranks: Any, parallel: dict[str, Any], precision: str) -> None:
    check(
        ranks, 2, deepspeed(parallel, precision=precision, steps=10), {"bf16": 2e-2, "fp16": 5e-3}[precision]
    )


# -- faults ---------------------------------------------------------------------------------------------


def count_not_compensated(patch: pytest.MonkeyPatch) -> None:
    """Gradients divided by the number of positions, as if no target were masked."""
    true = DeepSpeedEngine._update

    def update(self: DeepSpeedEngine, lr: float, to_mean: float) -> bool:
        return true(self, lr, self._normalisation.to_mean(8 * SEQ))

    patch.setattr(DeepSpeedEngine, "_update", update)


def averaged_over_ranks(patch: pytest.MonkeyPatch) -> None:
    true = DeepSpeedEngine._accumulate

    def accumulate(self: DeepSpeedEngine, batches: Any, factor: float) -> Tensor:
        return true(self, batches, factor / self.data_ranks)

    patch.setattr(DeepSpeedEngine, "_accumulate", accumulate)


def averaged_over_micro_batches(patch: pytest.MonkeyPatch) -> None:
    import deepspeed

    true = deepspeed.DeepSpeedEngine.backward
    patch.setattr(deepspeed.DeepSpeedEngine, "backward", lambda self, loss, **_: true(self, loss))


def masters_rounded(patch: pytest.MonkeyPatch) -> None:
    """First weights that went through bf16, as DeepSpeed makes its masters."""
    from parallel.deepspeed_engine.master_slice import MasterSlice

    true = MasterSlice.fill
    patch.setattr(MasterSlice, "fill", lambda self, whole: true(self, whole.bfloat16()))


def faulty_curve(context: Any, case: Case, fault: Callable[[pytest.MonkeyPatch], None]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        return curve(context, case)


@pytest.mark.parametrize(
    ("zero", "fault"),
    [
        *((0, fault) for fault in (count_not_compensated, averaged_over_ranks, averaged_over_micro_batches)),
        *((2, fault) for fault in (count_not_compensated, averaged_over_ranks, averaged_over_micro_batches)),
        (3, averaged_over_micro_batches),
        (3, masters_rounded),
    ],
)
def test_planted_fault_is_found(ranks: Any, fault: Any, zero: int) -> None:
    case = deepspeed({"zero": zero}, steps=3)
    assert distance(ranks(2).run(faulty_curve, case, fault)[0], reference(case)) > 5 * TOLERANCE
