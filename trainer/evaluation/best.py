"""The best evaluation of a run so far: which checkpoint stays, and when more steps are no use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.objective import measures_of
from trainer.config.run_config import RunConfig
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.record.reading import objects

if TYPE_CHECKING:
    from trainer.evaluation.evaluate import HeldoutResult

SMALLER_IS_BETTER = ("loss", "bits_per_byte")


@dataclass
class Best:
    """Follows one figure of one held-out set from evaluation to evaluation.

    What it says follows from the evaluations in the record alone, which are the same on every rank and after
    every resume: see `recall`.

    metric: name of the figure; empty: none is followed.
    heldout: name of the held-out set.
    patience: evaluations in a row without a better figure, after which the run ends; 0: it does not.
    value, step: the best figure, and the step that it was found after; step 0: there is none yet.
    worse: evaluations since then.
    """

    metric: str = ""
    heldout: str = ""
    patience: int = 0
    value: float = math.nan
    step: int = 0
    worse: int = 0

    def add(self, step: int, figures: Mapping[str, Mapping[str, Any]]) -> bool:
        """Take the evaluation after `step`: held-out set → its figures by name. Return whether it is the best
        so far. A figure that is not finite never is.
        """
        if not self.metric:
            return False
        found = figures[self.heldout].get(self.metric)
        value = math.nan if found is None else float(found)
        if not self._better(value):
            self.worse += 1
            return False
        self.value, self.step, self.worse = value, step, 0
        return True

    @property
    def is_over(self) -> bool:
        """Whether the figure has not become better for so long that the run ends."""
        return 0 < self.patience <= self.worse

    def recall(self, evaluations: Iterable[tuple[int, Mapping[str, Mapping[str, Any]]]]) -> None:
        """Begin anew with the evaluations of the record, the oldest first. One from before the config named
        the held-out set says nothing of it.
        """
        self.value, self.step, self.worse = math.nan, 0, 0
        for step, figures in evaluations:
            if self.heldout in figures:
                self.add(step, figures)

    def kept_at(self, step: int) -> str:
        """Return a line that names the best checkpoint at the end of a run, where it is not that of `step`,
        which is the newest: what reads a run takes the newest unless it is told.
        """
        if self.step in (0, step):
            return ""
        return f"best {self}, which is kept: --step {self.step} of export, evaluate and generate takes it"

    def __str__(self) -> str:
        return f"{self.heldout}: {self.metric} {self.value:.4g} after step {self.step}"

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        smaller = self.metric in SMALLER_IS_BETTER
        return math.isnan(self.value) or (value < self.value if smaller else value > self.value)


def open_best(cfg: RunConfig, context: ObjectiveContext) -> Best:
    """Return what follows `finetune.metric`, without an evaluation yet. ValueError where the objective has no
    such figure.
    """
    metric = cfg.finetune.metric
    if not metric:
        return Best()
    measures = measures_of(build_objective(cfg.objective, context))
    known = {"loss", *cfg.objective.of_texts, *cfg.objective.figures(dict.fromkeys(measures, (0.0, 1.0)))}
    known |= {"bits_per_byte"} if cfg.objective.scores_text else set()
    if metric not in known:
        raise ValueError(
            f"finetune.metric={metric}: an evaluation of objective.kind={cfg.objective.kind} has "
            f"{', '.join(sorted(known))}"
        )
    first = cfg.data.heldout[0]
    return Best(metric, first.name or first.path, cfg.finetune.patience)


def figures_of(results: Mapping[str, HeldoutResult]) -> dict[str, dict[str, float]]:
    """Return the results as the record has them."""
    return {name: result.record() for name, result in results.items()}


def recorded(metrics: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (step, figures by held-out set) of each evaluation in a metrics.jsonl, the oldest first."""
    return [
        (values["step"], values["eval"])
        for _, values in objects(metrics)
        if values is not None and "eval" in values
    ]
