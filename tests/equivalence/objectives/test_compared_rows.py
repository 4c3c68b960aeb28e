"""Losses over the rows of the global batch: the same loss and gradients for any way to divide the batch."""

from typing import Any

import pytest
import torch

from compared import EMBEDDING, Compared, Softmax, in_float64, run
from parallel.gradients import comparison
from runs import Alone, State, assemble, distance

TOLERANCE = 1e-5
BETA = 0.9  # Adam's first moment after a step is (1 - BETA) times the gradient


def gradients(states: list[State]) -> dict[str, torch.Tensor]:
    whole = assemble(states)
    prefix = "optim.exp_avg."
    return {name.removeprefix(prefix): m / (1 - BETA) for name, m in whole.items() if name.startswith(prefix)}


def largest_difference(case: Compared, loss: float, states: list[State]) -> float:
    """From float64, of the loss and of any gradient, relative to the gradient's norm."""
    expected_loss, expected = in_float64(case)
    found = gradients(states)
    assert found.keys() == expected.keys()
    off = [float((found[name] - grad).norm() / grad.norm()) for name, grad in expected.items()]
    return max(abs(loss - expected_loss) / expected_loss, *off)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 16])
def test_micro_batches_leave_no_trace(micro_batch: int) -> None:
    case = Compared(micro_batch=micro_batch)
    curve, state = run(Alone(), case)
    assert largest_difference(case, curve[0][0], [state]) < TOLERANCE
    assert distance(curve, run(Alone(), Compared())[0]) < TOLERANCE


def test_slabs_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(Alone(), Compared(micro_batch=4))[0]
    monkeypatch.setattr(comparison, "SLAB_ELEMENTS", 3 * 16)  # three rows at a time
    assert distance(run(Alone(), Compared(micro_batch=4))[0], expected) < TOLERANCE


# The models that embed rows are in `test_objective_parity`, on these layouts and others.
LAYOUTS: list[tuple[int, int, dict[str, Any]]] = [
    (2, 1, {"zero": 2}),
    (4, 2, {"dp_replicate": 2, "dp_shard": 2, "zero": 2}),
    (2, 4, {"pp": 2, "schedule": "zbv_zero_bubble"}),
]
MORE: list[tuple[int, int, dict[str, Any]]] = [
    *((2, micro, {"zero": zero}) for zero, micro in ((0, 8), (1, 1), (3, 2))),
    *((2, 4, {"pp": 2, "schedule": schedule}) for schedule in ("1f1b", "interleaved_1f1b")),
    (4, 2, {"pp": 2, "zero": 3, "schedule": "gpipe"}),
    *((4, 2, {"pp": 2, "zero": zero}) for zero in (1, 2, 3)),
    *((2, 4, {"engine": "deepspeed", "zero": zero}) for zero in (0, 1, 2, 3)),
]


@pytest.mark.parametrize(
    ("world", "micro_batch", "parallel"),
    [*LAYOUTS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_layouts_leave_no_trace(ranks: Any, world: int, micro_batch: int, parallel: dict[str, Any]) -> None:
    case = Compared(parallel=parallel, micro_batch=micro_batch)
    found = ranks(world).run(run, case)
    assert all(curve == found[0][0] for curve, _ in found)
    assert largest_difference(case, found[0][0][0][0], [state for _, state in found]) < TOLERANCE
    assert distance(found[0][0], run(Alone(), Compared())[0]) < TOLERANCE


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-2), ("fp16", 5e-3)])
def test_half_precision_is_near(precision: str, bound: float) -> None:
    """The seeds are scaled as a loss is: fp16's loss scale included."""
    curve, _ = run(Alone(), Compared(precision=precision, micro_batch=4))
    assert distance(curve, run(Alone(), Compared())[0]) < bound


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [{"zero": 3}, {"pp": 2}, *({"engine": "deepspeed", "zero": zero} for zero in (2, 3))],
    ids=str,
)
def test_half_precision_is_near_on_layouts(ranks: Any, parallel: dict[str, Any]) -> None:
    found = ranks(2).run(run, Compared(parallel=parallel, precision="bf16", micro_batch=4))
    assert distance(found[0][0], run(Alone(), Compared())[0]) < 2e-2


class OwnRankOnly(Softmax):
    """The negatives are those of the own micro-batches: a planted fault."""

    def loss_of_rows(
        self, mine: torch.Tensor, every: torch.Tensor, counted: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().loss_of_rows(mine, mine, counted[first : first + len(mine)], 0)


class Detached(Softmax):
    """The others are constants: a planted fault."""

    def loss_of_rows(
        self, mine: torch.Tensor, every: torch.Tensor, counted: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        others = torch.cat([every[:, : 2 * EMBEDDING].detach(), every[:, 2 * EMBEDDING :]], dim=1)
        return super().loss_of_rows(mine, others, counted, first)


@pytest.mark.parametrize("fault", [OwnRankOnly, Detached])
def test_a_planted_fault_is_found(ranks: Any, fault: type[Softmax]) -> None:
    case = Compared(micro_batch=4, objective=fault)
    found = ranks(2).run(run, case)
    assert largest_difference(case, found[0][0][0][0], [state for _, state in found]) > 0.1
