"""Tiny runs of a model of classes on made-up pictures or tokens, by a few settings; see `objective_runs`."""

from dataclasses import dataclass, field
from typing import Any

import objective_runs
from objective_runs import CLASSES, Sections, config_of
from parallel.engine import Engine
from runs import Alone, Batch

__all__ = ["CLASSES", "PictureCase", "build", "micro_batches", "reference", "train"]


@dataclass(frozen=True)
class PictureCase:
    """One run.

    model, objective, parallel, finetune: their sections of a config.
    tokens: rows of tokens in the place of pictures.
    """

    model: dict[str, Any]
    objective: dict[str, Any]
    parallel: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    tokens: bool = False
    global_batch: int = 8
    micro_batch: int = 1
    steps: int = 20

    @property
    def sections(self) -> Sections:
        sizes = {"global_batch": self.global_batch, "micro_batch": self.micro_batch, "steps": self.steps}
        return {
            "model": self.model,
            "objective": self.objective,
            "parallel": self.parallel,
            "finetune": self.finetune,
            "data": {"packing": "one"} | ({} if self.tokens else {"image_size": self.model["image_size"]}),
            "train": sizes,
        }


def build(case: PictureCase, rank: int, world: int) -> Engine:
    return objective_runs.build(config_of(case.sections), rank, world)


def micro_batches(case: PictureCase, step: int, rank: int, ranks: int) -> list[Batch]:
    """What data rank `rank` reads in a step."""
    return objective_runs.micro_batches(config_of(case.sections), step, rank, ranks)


def train(engine: Engine, case: PictureCase) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step."""
    return objective_runs.train(engine, config_of(case.sections))


def reference(case: PictureCase) -> list[tuple[float, float]]:
    """The same run on one process."""
    return objective_runs.run(Alone(), {**case.sections, "parallel": {}}).curve
