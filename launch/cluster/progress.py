"""How far a run is: what its folder says, whoever runs it. Changes nothing."""

import fcntl
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from common.hosts import lease_file
from launch.cluster import lines, submission
from trainer.folder import run_folder
from trainer.record.events import ENDED_EARLY
from trainer.record.reading import newest

LINES_READ = 1000  # of metrics.jsonl, from its end, at most
RATE_LINES = 20  # of metrics.jsonl, over which the rate is taken
MOST_SECONDS = 1e10  # a longer time left says nothing


@dataclass
class Progress:
    """How far a run is. None: not known.

    step, steps: steps done, and to do in all.
    loss: of the last step that was logged.
    steps_per_second, tokens_per_second, images_per_second: of the last steps that were logged; a model takes
        tokens or images.
    seconds_since_step: since metrics.jsonl was written last.
    seconds_left: until the last step, at this rate.
    restarts: how often a supervisor started the ranks again, or the job went back to the queue; a start by
        hand is none.
    ended_early: whether the run has ended before its last step, because its evaluations got no better.
    """

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    steps_per_second: float | None = None
    tokens_per_second: float | None = None
    images_per_second: float | None = None
    seconds_since_step: float | None = None
    seconds_left: float | None = None
    restarts: int = 0
    ended_early: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done, or the run has ended before it for want of better evaluations."""
        return self.step is not None and (self.step == self.steps or self.ended_early)


def progress(folder: Path, submitted: Path | None) -> Progress:
    """Return how far the run in `folder` is; `submitted`: the submission whose train.steps count."""
    found = Progress(steps=_steps(folder, submitted), restarts=_restarts(folder))
    file = folder / "metrics.jsonl"
    last = _last_steps(file)
    if not last:
        return found
    found.step, found.loss = lines.count(last[0].get("step")), _finite(last[0].get("loss"))
    end = events(folder).last((ENDED_EARLY,))
    found.ended_early = end is not None and end.get("step") == found.step
    found.tokens_per_second = lines.number(last[0].get("tokens_per_second"))
    found.images_per_second = lines.number(last[0].get("images_per_second"))
    found.seconds_since_step = max(0.0, time.time() - file.stat().st_mtime)
    seconds = [taken for line in last if (taken := lines.number(line.get("step_seconds")))]
    if seconds:
        found.steps_per_second = len(seconds) / sum(seconds)
    if found.steps_per_second and found.steps is not None and found.step is not None:
        left = max(0, found.steps - found.step) / found.steps_per_second
        found.seconds_left = left if left < MOST_SECONDS else None
    return found


class Events(lines.Growing):
    """The events of a run: how many restarts they tell of, and the last one of each kind."""

    def clear(self) -> None:
        """Forget all of them."""
        self.restarts, self._count = 0, 0
        self._newest: dict[str, tuple[int, dict[str, Any]]] = {}

    def take(self, values: dict[str, Any]) -> None:
        """Add one event."""
        if isinstance(kind := values.get("kind"), str):
            self._count += 1
            self._newest[kind] = (self._count, values)
            self.restarts += kind == "restart" and "job" not in values  # jobs note their own

    def last(self, kinds: Sequence[str]) -> dict[str, Any] | None:
        """Return the last event of one of these kinds."""
        found = [self._newest[kind] for kind in kinds if kind in self._newest]
        return max(found, key=lambda newest: newest[0])[1] if found else None


class _NotedRestarts(lines.Growing):
    """How many restarts the jobs of a submission noted."""

    def clear(self) -> None:
        self.count = 0
        self._before: object = None

    def take(self, values: dict[str, Any]) -> None:
        kind = values.get("kind")
        self.count += kind in ("restart", "requeue")
        # A requeue that SLURM refuses is followed by a stop.
        self.count -= kind == "stop" and self._before == "requeue"
        self._before = kind


# `follow` looks again and again: each time only what is new is read.
_events: dict[Path, Events] = {}
_noted: dict[Path, _NotedRestarts] = {}


def events(folder: Path) -> Events:
    """Return what the events of the run in `folder` tell until now."""
    file = folder.absolute() / run_folder.EVENTS
    found = _events.setdefault(file, Events(file))
    found.update()
    return found


def _restarts(folder: Path) -> int:
    """Count those that `germinal train` wrote into the run's events, and those that jobs noted."""
    count = events(folder).restarts
    for at in submission.folders(folder):
        file = at.absolute() / submission.NOTES
        noted = _noted.setdefault(file, _NotedRestarts(file))
        noted.update()
        count += noted.count
    return count


def _last_steps(file: Path) -> list[dict[str, Any]]:
    """Return the newest lines of metrics.jsonl that are about a training step, the newest first."""
    try:
        near = islice(newest(file), LINES_READ)
        return list(islice((line for line in near if _is_step(line)), RATE_LINES))
    except OSError:
        return []


def _is_step(line: dict[str, Any]) -> bool:
    return "loss" in line and lines.count(line.get("step")) is not None


def _finite(value: Any) -> float | None:
    size = lines.number(abs(value)) if isinstance(value, int | float) else None
    return None if size is None else float(value)


def _steps(folder: Path, submitted: Path | None) -> int | None:
    """Return train.steps of a submission, else of the run; None where its config cannot be read."""
    import yaml

    for file in (submitted and submitted / submission.CONFIG, folder / run_folder.CONFIG):
        if file is None:
            continue
        try:
            steps = yaml.safe_load(file.read_text(encoding="utf-8"))["train"]["steps"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
            continue
        if lines.count(steps) is not None:
            return lines.count(steps)
    return None


def holder(folder: Path) -> str:
    """Return the process that holds the run folder now, "" where none does. Waits for nobody.

    A lease counts too (`common.hosts.lease`): where there is one, a lock may be another host's.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(descriptor)
    return lease_file.holder(folder)
