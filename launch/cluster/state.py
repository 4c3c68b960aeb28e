"""How a run is: from the queue, from what its jobs noted, and from the run folder. Changes nothing.

Where the queue cannot be asked, the run folder alone says how far the run is.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, STOPPED
from launch.cluster import detached, slurm, submission
from launch.cluster.slurm import QueuedJob
from trainer.folder import run_folder

TAIL_BYTES = 64 << 10
RATE_LINES = 20  # of metrics.jsonl, over which the rate is taken
MOST_JOBS = 100  # that are asked after: those of the newest submissions

LIVE = ("queued", "held", "starting", "running", "ending")
_WORDS = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "SUSPENDED": "held",
    "CONFIGURING": "starting",
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
}


@dataclass(frozen=True)
class Jobs:
    """The jobs of a run that the queue knows.

    live: those that wait or run, in the order in which they were sent.
    over: those that ended a short time ago.
    problem: why the queue could not be asked; "" where it was, or there was nothing to ask.
    """

    live: list[QueuedJob] = field(default_factory=list)
    over: list[QueuedJob] = field(default_factory=list)
    problem: str = ""


@dataclass
class Status:
    """What `germinal status` shows of a run.

    run, folder: its name and its folder.
    state: queued, held, starting, running, ending; done, stopped, failed, cancelled, gone (the job left the
        queue without a word); unknown (the queue cannot be asked).
    reason: why, in one line.
    backend: slurm or local; "" for a run that was not submitted.
    jobs: ids of the jobs that wait or run.
    nodes: where it runs.
    step, steps: steps done, and to do in all; None where they are not known.
    loss: of the last step that was logged.
    steps_per_second, tokens_per_second: of the last steps that were logged.
    seconds_since_step: since metrics.jsonl was written last.
    seconds_left: until the last step, at this rate.
    job_left: of the job's time limit, as SLURM writes it.
    restarts: starts of the ranks after the first, over the whole run.
    code: the exit code of the submission, once it is over.
    """

    run: str
    folder: str
    state: str = "gone"
    reason: str = ""
    backend: str = ""
    jobs: list[str] = field(default_factory=list)
    nodes: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    steps_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_since_step: float | None = None
    seconds_left: float | None = None
    job_left: str = ""
    restarts: int = 0
    code: int | None = None

    @property
    def is_live(self) -> bool:
        """Whether the run goes on, or will."""
        return self.state in LIVE


def find(word: str, environ: Mapping[str, str]) -> Path:
    """Return the folder of the run that RUN means: a run folder, a file in it, a run's name, or a job's id.

    ValueError, one line, with the nearest name where there is none.
    """
    for path in (Path(word), Path("runs") / word):
        if path.is_dir() and (run_folder.is_run(path) or submission.folders(path)):
            return path
    if word.isdecimal() and (folder := _of_job(word, environ)):
        return folder
    if not Path(word).exists() and "/" not in word:
        if word.isdecimal():
            raise ValueError(f"{word}: no job of a run in runs/ has this id, and the queue does not know it")
        return run_folder.find(Path("runs") / word)
    return run_folder.find(word)


def jobs(folder: Path, environ: Mapping[str, str]) -> Jobs:
    """Ask after the jobs of the run in `folder`, of all its submissions."""
    batch: list[str] = []
    live: list[QueuedJob] = []
    problem = ""
    for at in submission.folders(folder):
        sent, backend = submission.jobs(at), submission.read(at).cluster.backend
        if backend == "slurm":
            batch += [job.job for job in sent]
            continue
        for job in sent:
            alive = detached.is_alive(job)
            if alive:
                live.append(QueuedJob(job.job, "RUNNING", "None", "N/A", "", job.host))
            elif alive is None and submission.ending(at) is None:
                problem = f"process {job.job} runs on {job.host}, if it does: ask there"
    try:
        known = slurm.queue(batch[-MOST_JOBS:], environ)
    except RuntimeError as error:
        return Jobs(live, [], str(error))
    found = [known[job] for job in batch if job in known]
    return Jobs([*live, *(j for j in found if not j.is_over)], [j for j in found if j.is_over], problem)


def status(folder: Path, environ: Mapping[str, str]) -> Status:
    """Return the state of the run in `folder`."""
    submissions = submission.folders(folder)
    found = Status(
        submission.read(submissions[-1]).run if submissions else folder.resolve().name, str(folder)
    )
    _progress(found, folder, submissions)
    held = holder(folder)
    if submissions:
        found.backend = submission.read(submissions[-1]).cluster.backend
        _from_queue(found, submissions[-1], jobs(folder, environ))
    if held and not found.is_live:
        found.state, found.reason = "running", f"by {held}"
    elif not submissions:
        finished = found.step is not None and found.step == found.steps
        found.state = "done" if finished else "stopped"
        found.code = DONE if finished else None
    return found


def _from_queue(found: Status, newest: Path, queue: Jobs) -> None:
    """Fill in state, reason and jobs of a run that was submitted."""
    notes, ending = submission.notes(newest), submission.ending(newest)
    said = notes[-1].reason if notes else ""
    if queue.live:
        job = next((job for job in queue.live if job.state != "PENDING"), queue.live[0])
        found.jobs, found.nodes, found.job_left = [j.job for j in queue.live], job.nodes, job.left
        found.state = _WORDS.get(job.state, job.state.lower())
        found.state = "held" if job.reason.startswith("JobHeld") else found.state
        waits = "" if job.reason in ("None", "") else f"job {job.job} waits: {job.reason}"
        found.reason = "; ".join(filter(None, (waits, said)))
        if found.state == "running" and submission.is_cancelled(newest):
            found.state, found.reason = "ending", "asked to save and to end"
        return
    if ending:
        found.code = ending.code
        found.state = {DONE: "done", STOPPED: "stopped"}.get(ending.code, "failed")
        found.reason = ending.reason
    elif (
        notes and notes[-1].kind == "stop"
    ):  # a job that may not be requeued: the next link, or a new one, goes on
        found.state, found.code, found.reason = "stopped", STOPPED, said
    if submission.is_cancelled(newest) and (ending is None or ending.code != DONE):
        found.state, found.reason = "cancelled", found.reason or "before it began"
    elif found.code is None and queue.problem:
        found.state, found.reason = "unknown", queue.problem
    elif found.code is None and queue.over:
        last = queue.over[-1]
        found.state = "cancelled" if last.state == "CANCELLED" else "failed"
        found.reason = f"SLURM says {last.state} of job {last.job}" + (f"; before: {said}" if said else "")
    elif found.code is None:
        found.reason = "its job is not there any more and left no word: see `germinal logs`"


def _progress(found: Status, folder: Path, submissions: list[Path]) -> None:
    """Fill in what the run folder says: step, rate, time left, restarts."""
    lines = [line for line in _tail(folder / "metrics.jsonl") if "loss" in line]
    found.steps = _steps(folder, submissions)
    starts = [line for line in _tail(folder / run_folder.EVENTS, whole=True) if line.get("kind") == "start"]
    found.restarts = max(0, len(starts) - 1)
    if not lines:
        return
    last = lines[-1]
    found.step, found.loss = last.get("step"), last.get("loss")
    found.tokens_per_second = last.get("tokens_per_second")
    found.seconds_since_step = max(0.0, time.time() - (folder / "metrics.jsonl").stat().st_mtime)
    seconds = [line["step_seconds"] for line in lines[-RATE_LINES:] if line.get("step_seconds")]
    if seconds:
        found.steps_per_second = len(seconds) / sum(seconds)
    if found.steps_per_second and found.steps is not None and found.step is not None:
        found.seconds_left = (found.steps - found.step) / found.steps_per_second


def _steps(folder: Path, submissions: list[Path]) -> int | None:
    """Return train.steps of the newest submission, else of the run; None where its config cannot be read."""
    import yaml

    for file in [*(at / submission.CONFIG for at in submissions[-1:]), folder / run_folder.CONFIG]:
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


def _of_job(job: str, environ: Mapping[str, str]) -> Path | None:
    """Return the run folder of a job: of a run in runs/, else of the job's output."""
    for file in Path("runs").glob(f"*/{submission.SUBMIT}/*/{submission.JOBS}"):
        if any(sent.job == job for sent in submission.jobs(file.parent)):
            return file.parents[2]
    output = slurm.output_of(job, environ)
    if re.search(rf"/{submission.SUBMIT}/[0-9]+/[^/]+$", output):
        folder = Path(output).parents[2]
        return folder if folder.is_dir() else None
    return None
