"""Which checkpoint of a run is read back: the newest that verifies, or that of a step."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.newest import damage, newest
from trainer.ranks import Ranks, on_every_rank

T = TypeVar("T")


def newest_checkpoint(run: Path, ranks: Ranks | None = None) -> Path:
    """Find the newest checkpoint that verifies; rank 0 prints on standard error which were passed over, and
    why. Collective where there are `ranks`. RuntimeError where there is none.
    """
    root, ranks = run / "checkpoints", ranks or Ranks()
    while True:
        found = newest(root, ranks)
        there = ranks.on_rank_zero(lambda: checkpoints.steps(root))
        for step, reason in found.passed_over if ranks.rank == 0 else ():
            if step in there:
                print(f"passed over step {step}: {reason}", file=sys.stderr)
        if found.step is not None:
            return checkpoints.step_folder(root, found.step)
        if set(there) <= {step for step, _ in found.passed_over}:
            break  # else the run trains, and has saved another one and removed these
    why = f"none of its {len(found.passed_over)} verifies" if found.passed_over else f"{root} holds none"
    raise on_every_rank(RuntimeError(f"{run} has no checkpoint to read: {why}; train it first"))


def read_newest(
    run: Path, checkpoint: Path, read: Callable[[Path], T], ranks: Ranks | None = None
) -> tuple[Path, T]:
    """Return the newest checkpoint of a run and what `read` gives of it. Collective where there are `ranks`,
    on all of which `read` then raises alike. Raises as `read` does.

    The run may be training meanwhile: where it removes `checkpoint` while that is read, there is a newer one,
    which is then read.
    """
    ranks = ranks or Ranks()
    while True:
        try:
            return checkpoint, read(checkpoint)
        except (RuntimeError, OSError):
            if ranks.on_rank_zero(checkpoint.is_dir):
                raise
        checkpoint = newest_checkpoint(run, ranks)


def checkpoint_of(run: Path, step: int, ranks: Ranks | None = None) -> Path:
    """Return the checkpoint of `step`, verified. Collective where there are `ranks`. ValueError where there
    is none, RuntimeError where it is damaged.
    """
    root, ranks = run / "checkpoints", ranks or Ranks()
    steps = ranks.on_rank_zero(lambda: checkpoints.steps(root))
    if step not in steps:
        there = f"those there: {steps[::-1]}"
        raise on_every_rank(ValueError(f"--step {step}: {run} has no checkpoint of that step; {there}"))
    folder = checkpoints.step_folder(root, step)
    if reason := damage(folder, ranks):
        raise on_every_rank(RuntimeError(reason))
    return folder
