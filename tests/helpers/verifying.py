"""`germinal verify` on a pool of ranks: a recorded reference, a layout compared with it, a planted fault."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.job import Job
from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.verify.compare import compare
from trainer.verify.reference import record

Fault = Callable[[pytest.MonkeyPatch, int], None]


def recorded(config: Path, overrides: Sequence[str], folder: Path, steps: int) -> Path:
    """Record the reference of one process in `folder`; return the folder."""
    job = Job(str(config), tuple(overrides)).reference()
    record(reading.load(job.config, job.overrides), runtime(0, 1), steps, folder)
    return folder


def compared(
    context: Any, config: Path, overrides: Sequence[str], reference: Path, fault: Fault | None = None
) -> dict[str, Any]:
    """Return the report of a rank of a pool; its layout is in `overrides`."""
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            fault(patch, context.rank)
        return compare(reading.load(config, overrides), runtime(context.rank, context.world), reference)


def runtime(rank: int, world: int) -> Runtime:
    return Runtime(rank, world, rank, torch.device("cpu"))


class References:
    """The reference of each (config, overrides), recorded when it is first used."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._folder = tempfile.TemporaryDirectory(prefix="germinal-references-")
        self._made: dict[tuple[Path, tuple[str, ...]], Path] = {}

    def __call__(self, config: Path, overrides: Sequence[str]) -> Path:
        key = config, tuple(overrides)
        if key not in self._made:
            folder = Path(self._folder.name) / str(len(self._made))
            folder.mkdir()
            self._made[key] = recorded(config, overrides, folder, self._steps)
        return self._made[key]

    def close(self) -> None:
        self._folder.cleanup()
