"""Which step of a run reads a sequence, from the run's record. Imports no torch.

`train.global_batch` may change where a run goes on, so the number of the sequence alone does not determine
the step.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from pathlib import Path

from trainer.checkpoint import folder as folders
from trainer.config import reading
from trainer.config.run_config import RunConfig


def steps_reading(cfg: RunConfig, number: int) -> tuple[int, int]:
    """Return (first, last) of the steps, one of which has read sequence `number`, or will.

    First and last are the same step, unless steps that were not logged had several global batches. Sequences
    that the run has not read yet are read with the global batch of `cfg`.
    """
    points = _points(cfg.folder)
    after = bisect_right(points, number, key=lambda point: point[1])
    step, sequences = points[after - 1]
    if after == len(points):
        step += (number - sequences) // cfg.train.global_batch + 1
        return step, step
    later, end = points[after]
    if later == step + 1:
        return later, later
    batches = _batches(cfg)
    least, most = min(batches), max(batches)
    if end - sequences == (later - step) * least:
        most = least
    elif end - sequences == (later - step) * most:
        least = most
    before, behind = number - sequences, end - 1 - number
    first = max(step + before // most + 1, later - behind // least)
    last = min(step + before // least + 1, later - behind // most)
    # A config that is there no longer, or cannot be read, had another size.
    return (first, last) if first <= last else (step + 1, later)


def _points(folder: Path) -> list[tuple[int, int]]:
    """Return all (step, sequences read by then) in the run's record, in order; the first is (0, 0)."""
    points = {(0, 0)}
    with contextlib.suppress(OSError), (folder / "metrics.jsonl").open() as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError):  # a torn line, an evaluation
                record = json.loads(line)
                points.add((record["step"], record["sequences"]))
    root = folder / "checkpoints"
    for step in folders.steps(root):
        with contextlib.suppress(RuntimeError):
            points.add((step, folders.manifest_of(folders.step_folder(root, step)).sequences))
    return sorted(points)


def _batches(cfg: RunConfig) -> set[int]:
    """Every `train.global_batch` that the run has had, and that of `cfg`."""
    return {cfg.train.global_batch, *(earlier.train.global_batch for earlier in reading.earlier(cfg.folder))}
