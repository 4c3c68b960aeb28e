"""One submission of a run: the folder `runs/NAME/submit/N/`, which a job reads and which `status` shows.

`germinal submit` writes it, before anything is sent; each job of the submission (one, its requeues, the links
of a chain) reads it, wherever it runs:

submission.json   what is to be run, and how: `Submission`
config.yaml       the resolved config of the run: every job of the submission trains this one
script.sh         what sbatch was given, and command.txt: the words it was given with
code/             a copy of the code that the jobs run (`code: copy`); code.json, code.diff: commit and diff
jobs.jsonl        the ids of the jobs that were sent: the batch system may start a job before it is written
log-JOB.txt       what a job printed
notes.jsonl       written by the jobs: every start of the ranks, how it ended, what was decided: `Note`
end.json          written by the last job: the run is over, or will not go on by itself: `Ending`
cancel            `germinal cancel` was called: save and end, without requeue or restart

The script of a SLURM job ends in `exec PYTHON -P -m launch.cluster.batch FOLDER`, with FOLDER this folder,
`code` first on PYTHONPATH and the modules loaded. `germinal cancel` writes `cancel`, then sends SIGTERM to
the batch step of a job that runs (`scancel --batch --signal=TERM`): it has the ranks save, writes end.json
and ends.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import write_atomically
from launch.cluster import lines
from launch.cluster.cluster import Cluster
from trainer.record.reading import newest

VERSION = 1

SUBMIT = "submit"
FILE = "submission.json"
CONFIG = "config.yaml"
SCRIPT = "script.sh"
COMMAND = "command.txt"
CODE = "code"
JOBS = "jobs.jsonl"
NOTES = "notes.jsonl"
ENDING = "end.json"
CANCEL = "cancel"


@dataclass
class Submission:
    """What the jobs of one submission run. All paths are absolute.

    run: the run's name, which is also the job's.
    folder: the submission's own folder, `RUN/submit/N`.
    run_folder: the run's.
    workdir: relative paths of the config start here: a job changes to it first.
    config: the resolved config. The ranks are `germinal rank CONFIG`; `overrides` are in it already.
    python: the interpreter on the nodes, outside any container.
    code: put first on PYTHONPATH, of the batch step and of the ranks; "": the installed code.
    cluster: nodes, ranks a node, container, environment …
    source: CONFIG as it was typed, and `overrides`: key=value as typed. For people.
    """

    run: str
    folder: str
    run_folder: str
    workdir: str
    config: str
    python: str
    code: str
    cluster: Cluster
    source: str = ""
    overrides: list[str] = field(default_factory=list)
    version: int = VERSION


@dataclass
class Note:
    """One line of notes.jsonl: what a job did with the ranks.

    time: seconds since 1970.
    job: id of the job.
    kind: start, end (of one start of the ranks), requeue, restart, stop.
    reason: one line for people.
    code: exit code of the ranks; None where they did not end.
    step: the last step of the run that is known; None before the first.
    attempt: starts of the ranks by this job, from 1.
    nodes: on which the ranks run.
    excluded: nodes of the allocation that are not used any more.
    """

    time: float
    job: str
    kind: str
    reason: str = ""
    code: int | None = None
    step: int | None = None
    attempt: int = 0
    nodes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)


@dataclass
class Ending:
    """How the submission ended: no further job of it trains. A later link of a chain that finds this ends at
    once with the same code.

    time: seconds since 1970.
    job: id of the job.
    code: 0 done; 1 failed; 2 wrong; 75 stopped on request, saved; 130 interrupted.
    reason: one line for people.
    """

    time: float
    job: str
    code: int
    reason: str = ""


def new_folder(run_folder: Path) -> Path:
    """Create and return the folder of the next submission: `submit/1`, `submit/2` …; no two get the same."""
    above = run_folder / SUBMIT
    above.mkdir(parents=True, exist_ok=True)
    while True:
        folder = above / str(max(_numbers(above), default=0) + 1)
        try:
            folder.mkdir()
            return folder.resolve()
        except FileExistsError:
            continue


def folders(run_folder: Path) -> list[Path]:
    """Return the folders of the run's submissions, oldest first."""
    above = run_folder / SUBMIT
    if not above.is_dir():
        return []
    return [
        above / str(number) for number in sorted(_numbers(above)) if (above / str(number) / FILE).is_file()
    ]


def write(submission: Submission) -> None:
    """Write submission.json into its folder."""
    from trainer.config.plain import plain

    _write_json(Path(submission.folder) / FILE, plain(submission))


def read(folder: str | Path) -> Submission:
    """Return the submission in `folder`. ValueError, one line, where there is none or of another version."""
    from trainer.config import schema

    file = Path(folder) / FILE
    values = lines.document(file)
    if values is None:
        raise ValueError(f"{file}: no such submission: it is written by `germinal submit`")
    if values.get("version") != VERSION:
        found = values.get("version")
        raise ValueError(f"{file}: version {found}, and this germinal reads {VERSION}: submit the run again")
    try:
        submission: Submission = schema.build(Submission, values)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from None
    return submission


@dataclass
class SentJob:
    """One line of jobs.jsonl: a job that was sent.

    time: seconds since 1970.
    job: its id in SLURM, or the id of its process.
    host, started: of a process: its machine, and when it began as the kernel counts (`detached`).
    """

    time: float
    job: str
    host: str = ""
    started: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{1,20}", self.job):
            raise ValueError(f"job={self.job!r}: not the id of a job or process")


def add_job(folder: Path, job: str, *, host: str = "", started: str = "") -> None:
    """Remember a job that was sent."""
    _append(folder / JOBS, dataclasses.asdict(SentJob(time.time(), job, host, started)))


def jobs(folder: Path) -> list[SentJob]:
    """Return the submission's jobs, in the order in which they were sent."""
    return list(lines.records(folder / JOBS, SentJob))


def note(folder: Path, line: Note) -> None:
    """Append a line to notes.jsonl."""
    _append(folder / NOTES, dataclasses.asdict(line))


def notes(folder: Path) -> Iterator[Note]:
    """Yield what the jobs noted, oldest first."""
    return lines.records(folder / NOTES, Note)


def last_note(folder: Path) -> Note | None:
    """Return what the jobs noted last; None before the first note."""
    found = (lines.as_record(values, Note) for values in newest(folder / NOTES))
    return next((note for note in found if note), None)


def end(folder: Path, ending: Ending) -> None:
    """Say that the submission is over."""
    _write_json(folder / ENDING, dataclasses.asdict(ending))


def ending(folder: Path) -> Ending | None:
    """Return how the submission ended; None while a job of it may still train.

    Raises:
        ValueError: one line with the file, which is damaged.
    """
    file = folder / ENDING
    values = lines.document(file)
    found = None if values is None else lines.as_record(values, Ending)
    if values is not None and found is None:
        raise ValueError(f"{file}: damaged: it does not say how the submission ended")
    return found


def ask_to_cancel(folder: Path) -> None:
    """Ask the jobs of the submission to save and end, and neither to requeue nor to restart."""
    write_atomically(folder / CANCEL, b"")


def is_cancelled(folder: Path) -> bool:
    """Whether `germinal cancel` was called."""
    return os.path.exists(folder / CANCEL)  # False also where the disk is away


def _numbers(above: Path) -> list[int]:
    return [int(entry.name) for entry in above.iterdir() if re.fullmatch(r"[1-9][0-9]{0,8}", entry.name)]


def _write_json(file: Path, values: Any) -> None:
    # ASCII, so that a path that is not UTF-8 comes back as it was.
    write_atomically(file, (json.dumps(values, indent=1) + "\n").encode("ascii"))


def _append(file: Path, values: Any) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a full disk took half a line
        data = ("\n" * is_torn + json.dumps(values) + "\n").encode("ascii")
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
