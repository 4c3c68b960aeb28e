"""How a run is: from the queue, from what its jobs noted, and from the run folder. Changes nothing.

Where the queue cannot be asked, the run folder alone says how far the run is.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, STOPPED
from launch.cluster import detached, slurm, submission
from launch.cluster.last_end import last_end, restarting, supervised
from launch.cluster.progress import Progress, events, holder, progress
from launch.cluster.slurm import QueuedJob
from trainer.folder import run_folder

MOST_JOBS = 100  # that are asked after: those of the newest submissions

Ask = Callable[[Sequence[str]], dict[str, QueuedJob]]
"""Ids of jobs → those that the queue knows; RuntimeError where it cannot be asked."""

LIVE = ("queued", "held", "starting", "running", "restarting", "ending")
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
    state: queued, held, starting, running, restarting, ending; done, stopped, failed, cancelled (by `germinal
        cancel` or scancel), gone (the job left the queue without a word); unknown (the queue cannot be
        asked).
    reason: why, in one line.
    backend: slurm or local; "" for a run that was not submitted.
    jobs: ids of the jobs that wait or run.
    nodes: where it runs.
    job_left: of the job's time limit, as SLURM writes it.
    code: the exit code of the submission, once it is over.
    progress: how far the run is.
    """

    run: str
    folder: str
    state: str = "gone"
    reason: str = ""
    backend: str = ""
    jobs: list[str] = field(default_factory=list)
    nodes: str = ""
    job_left: str = ""
    code: int | None = None
    progress: Progress = field(default_factory=Progress)

    def document(self) -> dict[str, Any]:
        """Return all of it as one level of keys: for --json."""
        values = dataclasses.asdict(self)
        return values | values.pop("progress")

    @property
    def is_live(self) -> bool:
        """Whether the run goes on, or will."""
        return self.state in LIVE or bool(self.jobs)


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


def jobs(folder: Path, environ: Mapping[str, str], ask: Ask | None = None) -> Jobs:
    """Ask after the jobs of the run in `folder`, of all its submissions.

    ask: asks the queue; None: squeue.
    """
    batch: list[str] = []
    live: list[QueuedJob] = []
    problem = ""
    for at in submission.folders(folder):
        for job in submission.jobs(at):
            if not job.host:  # not of this machine's processes, but of SLURM
                batch.append(job.job)
                continue
            alive = detached.is_alive(job)
            if alive:
                live.append(QueuedJob(job.job, "RUNNING", "None", "N/A", "", job.host))
            elif alive is None and _ending(at) is None:
                problem = f"process {job.job} runs on {job.host}, if it does: ask there"
    try:
        asked = batch[-MOST_JOBS:]
        known = slurm.queue(asked, environ) if ask is None else ask(asked)
    except RuntimeError as error:
        return Jobs(live, [], str(error))
    found = [known[job] for job in batch if job in known]
    return Jobs([*live, *(j for j in found if not j.is_over)], [j for j in found if j.is_over], problem)


def statuses(folders: Sequence[Path], environ: Mapping[str, str]) -> list[Status]:
    """Return the state of the run in each folder; the queue is asked once for all. Where a file of a run is
    damaged or cannot be read, the reason says so: nothing is raised, for other runs are shown beside it.
    """
    ask = _asked_once([job for folder in folders for job in _batch_jobs(folder)[-MOST_JOBS:]], environ)
    found = []
    for folder in folders:
        try:
            found.append(status(folder, environ, ask))
        except (OSError, ValueError) as error:
            run = folder.resolve().name
            found.append(Status(run, str(folder), state="unknown", reason=str(error)))
    return found


def _batch_jobs(folder: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return [job.job for at in submission.folders(folder) for job in submission.jobs(at) if not job.host]
    return []


def _asked_once(asked: Sequence[str], environ: Mapping[str, str]) -> Ask:
    problem, known = "", {}
    try:
        known = slurm.queue(asked, environ)
    except RuntimeError as error:
        problem = str(error)

    def ask(jobs: Sequence[str]) -> dict[str, QueuedJob]:
        if jobs and problem:
            raise RuntimeError(problem)
        return {job: known[job] for job in jobs if job in known}

    return ask


def status(folder: Path, environ: Mapping[str, str], ask: Ask | None = None) -> Status:
    """Return the state of the run in `folder`. OSError, ValueError, one line, where a file of the run cannot
    be read or is damaged.

    ask: asks the queue; None: squeue.
    """
    found = Status(folder.resolve().name, str(folder))
    queue = jobs(folder, environ, ask)
    current = _current(submission.folders(folder), queue)
    damaged = _damaged(current) if current else ""
    if current:
        with contextlib.suppress(ValueError):
            sub = submission.read(current)
            found.run, found.backend = sub.run, sub.cluster.backend
        _from_queue(found, current, queue)
    found.progress = progress(folder, current)
    happened = events(folder)
    held = holder(folder)
    again = "" if held else restarting(happened)
    if held and not found.is_live:
        found.state, found.reason = "running", f"by {held}"
    elif again and (found.state == "running" or not found.is_live):
        found.state, found.reason, found.code = "restarting", again, None
    elif not current:
        by = supervised(folder)
        end = last_end(folder, found.progress, happened)
        found.state, found.reason, found.code = end.state, end.reason, end.code
        if by and end.code not in (DONE, STOPPED):
            found.state, found.code = "ending", None
            found.reason = f"rank 0 has ended, and its supervisor, {by}, has not decided yet what follows"
    found.reason = "; ".join(filter(None, (damaged, found.reason)))
    return found


def _current(submissions: list[Path], queue: Jobs) -> Path | None:
    """Return the submission whose job runs; else the first whose job waits; else that which did something
    last.
    """
    live = sorted(queue.live, key=lambda job: job.state == "PENDING")
    for job in live:
        for at in submissions:
            if any(sent.job == job.job for sent in submission.jobs(at)):
                return at
    return max(submissions, key=_latest, default=None)


def _latest(at: Path) -> float:
    """Return when a submission was sent, or its jobs last noted something: seconds since 1970."""
    said = (*submission.jobs(at), submission.last_note(at), _ending(at))
    return max((line.time for line in said if line), default=0.0)


def _damaged(at: Path) -> str:
    """Return what is wrong with the files of a submission, one line; "" where they are sound."""
    wrong = []
    for reader in (submission.read, submission.ending):
        try:
            reader(at)
        except ValueError as error:
            wrong.append(str(error))
    return "; ".join(wrong)


def _ending(at: Path) -> submission.Ending | None:
    """Return how a submission ended; None where it has not, or its end.json is damaged."""
    try:
        return submission.ending(at)
    except ValueError:
        return None


def _from_queue(found: Status, at: Path, queue: Jobs) -> None:
    """Fill in state, reason and jobs of a run that was submitted."""
    note = submission.last_note(at)
    said = note.reason if note else ""
    if queue.live:
        job = next((job for job in queue.live if job.state != "PENDING"), queue.live[0])
        found.jobs, found.nodes, found.job_left = [j.job for j in queue.live], job.nodes, job.left
        found.state = _WORDS.get(job.state, job.state.lower())
        found.state = "held" if job.reason.startswith("JobHeld") else found.state
        waits = "" if job.reason in ("None", "") else f"job {job.job} waits: {job.reason}"
        found.reason = "; ".join(filter(None, (waits, said)))
        if found.state == "running" and submission.is_cancelled(at):
            found.state, found.reason = "ending", "asked to save and to end"
        return
    ending = _ending(at)
    own = {job.job for job in submission.jobs(at)}
    over = [job for job in queue.over if job.job in own]
    if ending:
        found.code = ending.code
        found.state = {DONE: "done", STOPPED: "stopped"}.get(ending.code, "failed")
        found.reason = ending.reason
    elif note and note.kind == "stop":  # may not be requeued: the next link, or a new job, goes on
        found.state, found.code, found.reason = "stopped", STOPPED, said
    if submission.is_cancelled(at) and (ending is None or ending.code != DONE):
        found.state, found.reason = "cancelled", found.reason or said or "before it began"
    elif found.code is None and queue.problem:
        found.state, found.reason = "unknown", queue.problem
    elif found.code is None and over:
        last = over[-1]
        found.state = {"CANCELLED": "cancelled", "COMPLETED": "done"}.get(last.state, "failed")
        found.reason = f"SLURM says {last.state} of job {last.job}" + (f"; before: {said}" if said else "")
    elif found.code is None:
        found.reason = "its job is not there any more and left no word: see `germinal logs`"


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
