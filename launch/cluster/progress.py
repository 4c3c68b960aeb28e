"""How far a run is: what its folder says, whoever runs it. Changes nothing."""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cluster import submission
from trainer.folder import run_folder

TAIL_BYTES = 64 << 10
RATE_LINES = 20  # of metrics.jsonl, over which the rate is taken


@dataclass
class Progress:
    """How far a run is. None: not known.

    step, steps: steps done, and to do in all.
    loss: of the last step that was logged.
    steps_per_second, tokens_per_second: of the last steps that were logged.
    seconds_since_step: since metrics.jsonl was written last.
    seconds_left: until the last step, at this rate.
    restarts: how often a supervisor started the ranks again, or the job went back to the queue; a start by
        hand is none.
    """

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    steps_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_since_step: float | None = None
    seconds_left: float | None = None
    restarts: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done."""
        return self.step is not None and self.step == self.steps


def progress(folder: Path, submitted: Path | None) -> Progress:
    """Return how far the run in `folder` is; `submitted`: the submission whose train.steps count."""
    found = Progress()
    lines = [line for line in _tail(folder / "metrics.jsonl") if "loss" in line]
    found.steps = _steps(folder, submitted)
    found.restarts = _restarts(folder)
    if not lines:
        return found
    last = lines[-1]
    found.step, found.loss = last.get("step"), last.get("loss")
    found.tokens_per_second = last.get("tokens_per_second")
    found.seconds_since_step = max(0.0, time.time() - (folder / "metrics.jsonl").stat().st_mtime)
    seconds = [line["step_seconds"] for line in lines[-RATE_LINES:] if line.get("step_seconds")]
    if seconds:
        found.steps_per_second = len(seconds) / sum(seconds)
    if found.steps_per_second and found.steps is not None and found.step is not None:
        found.seconds_left = (found.steps - found.step) / found.steps_per_second
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """Return all events of the run in `folder`, oldest first."""
    return _tail(folder / run_folder.EVENTS, whole=True)


def _restarts(folder: Path) -> int:
    """Count those that `germinal train` wrote into the run's events, and those that jobs noted."""
    own = sum(event.get("kind") == "restart" and "job" not in event for event in events(folder))
    noted = 0
    for at in submission.folders(folder):
        kinds = [note.kind for note in submission.notes(at)]
        # A requeue that SLURM refuses is followed by a stop.
        noted += sum(
            kind == "restart" or (kind == "requeue" and after != "stop")
            for kind, after in zip(kinds, [*kinds[1:], ""])
        )
    return own + noted


def _steps(folder: Path, submitted: Path | None) -> int | None:
    """Return train.steps of a submission, else of the run; None where its config cannot be read."""
    import yaml

    for file in (submitted and submitted / submission.CONFIG, folder / run_folder.CONFIG):
        if file is None:
            continue
        try:
            steps = yaml.safe_load(file.read_text(encoding="utf-8"))["train"]["steps"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
        if isinstance(steps, int):
            return steps
    return None


def _tail(file: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """Return the objects at the end of a JSON Lines file; `whole`: all of them."""
    try:
        with file.open("rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            start = lines.seek(0 if whole else max(0, size - TAIL_BYTES))
            data = lines.read().splitlines()
    except OSError:
        return []
    found = []
    for line in data[1:] if start else data:
        try:
            value = json.loads(line)
        except ValueError:  # torn: being written
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def holder(folder: Path) -> str:
    """Return the process that holds the run folder now, "" where none does. Waits for nobody."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    except OSError:  # a file system without locks
        return ""
    finally:
        os.close(descriptor)
    return ""
