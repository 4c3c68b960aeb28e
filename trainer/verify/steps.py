"""The first steps of a run without the training loop: an engine and the batches that it reads."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from data.stream.loader import Loader
from parallel.engine import Engine, StepResult
from parallel.layout.layout import Layout
from parallel.world.runtime import Runtime
from trainer.config.run_config import RunConfig
from trainer.first_weights.fill import begin
from trainer.optim.schedule import learning_rate
from trainer.ranks import Ranks
from trainer.start.engine import make_engine
from trainer.start.opening import objective_context, open_alike


@dataclass(frozen=True)
class FirstSteps:
    """A run before its first step.

    cfg: its config.
    ranks: this rank among all.
    layout: sizes of the mesh axes.
    engine: the model and its optimiser on this rank.
    batches: this rank's micro-batches, a list a step.
    """

    cfg: RunConfig
    ranks: Ranks
    layout: Layout
    engine: Engine
    batches: Iterator[Any]

    def take(self, step: int) -> StepResult:
        """Take step number `step`, counted from 0. Collective."""
        lr = learning_rate(step, self.cfg.optim, self.cfg.train.steps)
        return self.engine.step(next(self.batches), lr=lr)


def open_steps(cfg: RunConfig, runtime: Runtime, stack: ExitStack) -> FirstSteps:
    """Build the engine and open the stream of a run; `stack` closes both. Collective."""
    ranks = Ranks(runtime.rank, runtime.world)
    cfg, layout, stream = open_alike(cfg, ranks)
    engine = make_engine(cfg, runtime, layout, objective_context(cfg, stream))
    stack.callback(engine.close)
    begin(cfg, engine, stream, ranks)
    loader = Loader(
        stream,
        rank=engine.data_rank,
        ranks=engine.data_ranks,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
    )
    stack.callback(loader.close)
    return FirstSteps(cfg, ranks, layout, engine, iter(loader))


def scalars(result: StepResult) -> dict[str, float]:
    """Return the mean loss (nats a target), the gradient norm and the count of targets of a step."""
    return {
        "loss": result.loss_sum / max(1.0, result.count),
        "grad_norm": result.grad_norm,
        "count": result.count,
    }
