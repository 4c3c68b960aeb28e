"""Every objective on every model that takes it, on every axis, against one process in fp32.

A combination is one of CASES on one of LAYOUTS. `bench/parity.py objectives` runs them all,
`equivalence/objectives/test_objective_parity.py` a covering part. What is refused is found by the checks that
a command makes before any rank starts.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from objective_cases import CASES, IDLE
from objective_runs import Run, Sections, config_of, run
from parallel.deepspeed_engine.settings import check as check_deepspeed
from parity_cases import Difference, difference
from runs import Alone, State, assemble
from trainer.config import checks
from trainer.models.registry import MODELS
from trainer.objectives.registry import OBJECTIVES

BOUND = 1e-5
"""Of the relative difference of any step's loss and gradient norm, of an evaluation's figures and of all
weights at the end."""


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over ranks.

    parallel: its section of a config.
    """

    world: int
    parallel: dict[str, Any]

    def size(self, axis: str) -> int:
        return int(self.parallel.get(axis, 1))

    @property
    def dp(self) -> int:
        return self.world // math.prod(self.size(axis) for axis in ("tp", "pp", "cp"))


LAYOUTS: dict[str, Layout] = {
    **{f"dp2, ZeRO {zero}": Layout(2, {"zero": zero}) for zero in (0, 1, 2, 3)},
    "tp2": Layout(2, {"tp": 2}),
    "pp2": Layout(2, {"pp": 2}),
    "cp2": Layout(2, {"cp": 2}),
    "dp2×tp2": Layout(4, {"tp": 2, "zero": 1}),
    "pp2×tp2": Layout(4, {"pp": 2, "tp": 2}),
    "cp2×tp2": Layout(4, {"cp": 2, "tp": 2}),
    "cp2×pp2, recomputed": Layout(4, {"cp": 2, "pp": 2, "recompute": "full"}),
    "pp2×tp2, cut by cost": Layout(4, {"pp": 2, "tp": 2, "cut": "cost"}),
    "dp2×pp2 ZBV, ZeRO 3": Layout(4, {"pp": 2, "zero": 3, "schedule": "zbv_zero_bubble"}),
    **{
        f"DeepSpeed, dp2, ZeRO {zero}": Layout(2, {"engine": "deepspeed", "zero": zero})
        for zero in (0, 1, 2, 3)
    },
}


@dataclass(frozen=True)
class Combination:
    """A case on a layout, by their names."""

    case: str
    layout: str

    @property
    def world(self) -> int:
        return LAYOUTS[self.layout].world

    def sections(self, steps: int = 20) -> dict[str, dict[str, Any]]:
        """Two micro-batches on each data rank, four in a pipeline."""
        case, layout = CASES[self.case], LAYOUTS[self.layout]
        model = case.model | (case.more_blocks if "schedule" in layout.parallel else {})
        micro_batches = 4 if layout.size("pp") > 1 else 2
        return {
            "model": model,
            "objective": case.objective,
            "data": case.data,
            "parallel": layout.parallel,
            "train": {"micro_batch": 8 // (layout.dp * micro_batches), "steps": steps},
            "optim": {"lr": case.lr},
        }

    def refusal(self) -> str:
        """Why it is not offered; "" where it is."""
        return _refusal(self)

    def __str__(self) -> str:
        return f"{self.case}: {self.layout}"


@functools.cache
def _refusal(one: Combination) -> str:
    return refusal(one.sections(), one.world)


def refusal(sections: Sections, world: int = 1) -> str:
    """Return what the checks before any rank starts say of a config; "" where it is taken."""
    try:
        cfg = config_of(sections)
        checks.check(cfg)
        checks.layout(cfg, world)
        if cfg.parallel.engine == "deepspeed":
            check_deepspeed(cfg.parallel)
    except ValueError as error:
        return str(error)
    return ""


def kinds() -> tuple[list[str], list[str]]:
    """Return the kinds of all objectives, and of all models, those of docs/examples behind the others."""
    own = dict.fromkeys(case.model["kind"] for case in CASES.values() if ":" in case.model["kind"])
    return list(OBJECTIVES), [*MODELS, *own]


def offered_pairs() -> set[tuple[str, str]]:
    """Return the kinds of objective and model of all cases."""
    return {(case.objective["kind"], case.model["kind"]) for case in CASES.values()}


def refused_pair(objective: str, model: str) -> str:
    """Return what is said of an objective of one case with the model of another, on one process."""
    asked = next(case for case in CASES.values() if case.objective["kind"] == objective)
    given = next(case for case in CASES.values() if case.model["kind"] == model)
    return refusal({"objective": asked.objective, "model": given.model, "data": asked.data})


def combinations() -> Iterator[Combination]:
    """Every case on every layout, refused or not."""
    for case in CASES:
        for layout in LAYOUTS:
            yield Combination(case, layout)


@dataclass(frozen=True)
class ObjectiveDifference(Difference):
    """The largest relative differences from one process in fp32.

    evaluation: of any figure of an evaluation after the last step.
    weights: ‖a - b‖ / ‖b‖ of all weights at the end, in one vector.
    """

    evaluation: float
    weights: float

    @property
    def worst(self) -> float:
        return max(x if math.isfinite(x) else math.inf for x in vars(self).values())


def compare(
    ranks: Any, one: Combination, steps: int = 20, *, train: Callable[[Any, Sections], Run] = run
) -> ObjectiveDifference:
    """Run a combination on a pool. AssertionError unless all ranks report the same.

    train: what the ranks do; another one than `run` has a fault.
    """
    runs: list[Run] = ranks(one.world).run(train, one.sections(steps))
    first, expected = runs[0], reference(one, steps)
    for other in runs[1:]:
        assert (other.curve, other.evaluated) == (first.curve, first.evaluated), "ranks report different runs"
    assert first.evaluated.keys() == expected.evaluated.keys()
    curve = difference(first.curve, expected.curve)
    figures = [(value, expected.evaluated[name]) for name, value in first.evaluated.items()]
    return ObjectiveDifference(
        loss=curve.loss,
        grad_norm=curve.grad_norm,
        evaluation=max(abs(a - b) / max(abs(b), 1e-30) for a, b in figures),
        weights=distance_of_weights([of.state for of in runs], [expected.state], IDLE + CASES[one.case].idle),
    )


def reference(one: Combination, steps: int = 20) -> Run:
    """The same run on one process: one for all layouts of a case that have the same model."""
    deep = "schedule" in LAYOUTS[one.layout].parallel
    return _reference(Combination(one.case, "dp2×pp2 ZBV, ZeRO 3" if deep else "dp2, ZeRO 0"), steps)


@functools.cache
def _reference(one: Combination, steps: int) -> Run:
    sections = one.sections(steps)
    alone = {"parallel": {}, "train": sections["train"] | {"micro_batch": 4}}
    return run(Alone(), sections | alone)


def distance_of_weights(found: list[State], expected: list[State], idle: tuple[str, ...]) -> float:
    a, b = (
        {
            n: t.double()
            for n, t in assemble(states).items()
            if n.startswith("model.") and not n.endswith(idle)
        }
        for states in (found, expected)
    )
    assert a.keys() == b.keys()
    off, whole = (torch.cat([t.flatten() for t in some]) for some in ([a[n] - b[n] for n in b], b.values()))
    return float(off.norm() / whole.norm())
