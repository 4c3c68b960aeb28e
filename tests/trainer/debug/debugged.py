"""Runs looked into by `trainer.debug`, in this process or on a pool of ranks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.debug.command import OVERRIDES
from trainer.debug.layer_table import Row, gather_rows
from trainer.debug.look import Wanted, look
from trainer.debug.observer import Observer
from trainer.debug.session import Session, open_session
from trainer.loop import take_step


@contextmanager
def opened(config: Path, overrides: Sequence[str] = (), *, step: int | None = None) -> Iterator[Session]:
    """Open a run for reading, in one process."""
    with ExitStack() as stack:
        yield _open(config, overrides, stack, rank=0, world=1, step=step)


def _open(
    config: Path,
    overrides: Sequence[str],
    stack: ExitStack,
    *,
    rank: int,
    world: int,
    step: int | None = None,
) -> Session:
    cfg = reading.load(config, (*overrides, *OVERRIDES))
    return open_session(cfg, Runtime(rank, world, rank, torch.device("cpu")), stack, step=step)


def looked_into(run: Session, out: Path | None = None, **changes: Any) -> tuple[bool, list[str]]:
    """Look into a run; return whether all is well, and the lines that were printed."""
    wanted: dict[str, Any] = {"steps": 1, "rows": 1, "overfits": False, "deterministic": True}
    lines: list[str] = []
    return look(run, Wanted(**wanted | {"finds_anomalies": True} | changes, out=out), lines.append), lines


def statistics_of(
    context: Any, config: Path, overrides: Sequence[str], plant: Callable[[Session], None] | None = None
) -> list[Row]:
    """Return the statistics of the next step, on a rank of a pool."""
    with ExitStack() as stack:
        run = _open(config, overrides, stack, rank=context.rank, world=context.world)
        plan = run.cfg.model.plan()
        observer = Observer(run.engine.stages, plan, has_loss_scale=False)
        stack.callback(observer.close)
        run.engine.look_at_gradients(observer.look_at_gradients)
        if plant is not None:
            plant(run)
        batch = next(run.steps)
        observer.begin(run.state.step + 1, batch)
        take_step(run.engine, run.steps, batch, run.state, run.cfg, lr=1e-3, stop=False)
        return gather_rows(observer.found, run.ranks, plan)
