"""Config and cluster file → submissions, checked; submissions → jobs. Read after `submission`."""

import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.lock import FolderLock
from launch.checks import check_job
from launch.cluster import code_state, detached, preflight, progress, script, slurm, state, submission
from launch.cluster.cluster import Cluster
from launch.cluster.elements import Element
from launch.cluster.submission import Submission
from launch.job import Job

if TYPE_CHECKING:
    from trainer.config.run_config import RunConfig

LOCK_SECONDS = 90.0  # sbatch itself may take a minute


@dataclass(frozen=True)
class Wish:
    """A run that is to be submitted, checked.

    config: the resolved config.
    source, overrides: CONFIG and key=value as typed, those of the array included.
    cluster: what it asks for.
    """

    config: "RunConfig"
    source: str
    overrides: tuple[str, ...]
    cluster: Cluster

    @property
    def folder(self) -> Path:
        """The run folder, absolute."""
        return Path(os.path.abspath(self.config.folder))


class Busy(RuntimeError):
    """A job of the run waits or runs already: this passes by itself."""


def wishes(
    config: str, overrides: Sequence[str], elements: Sequence[Element], cluster: Cluster
) -> list[Wish]:
    """Return what is to be submitted, one run an element, all of it checked.

    Raises:
        ValueError: the config, a layout or the run folder is wrong; RuntimeError: a corpus is damaged.
    """
    from trainer.process.disk import check_folder

    found = []
    for element in elements:
        given = (*overrides, *element.overrides)
        cfg = _checked(config, given, cluster)
        if element.suffix:
            own = [f"name={cfg.name}-{element.suffix}"]
            if cfg.run_dir != f"runs/{cfg.name}":
                own.append(f"run_dir={cfg.run_dir}-{element.suffix}")
            given = (*given, *own)
            cfg = _checked(config, given, cluster)
        check_folder(cfg.folder)
        wish = Wish(cfg, config, given, cluster)
        preflight.check_folder(wish.folder, cluster)
        found.append(wish)
    return found


def send(wish: Wish, *, after: Sequence[str], links: int, like: Path | None) -> Submission:
    """Write the submission of a run and send its jobs; return it.

    after: ids of jobs that must have ended before the first job starts.
    links: how many jobs: each starts when the one before it has ended.
    like: the folder of another submission of this command, whose copy of the code is the same.

    Raises:
        Busy: a job of this run waits or runs, and is not one of `after`.
        RuntimeError: sbatch refuses the job, and nothing of the submission is left; or the job may have been
            sent (`slurm.PerhapsSent`), and what it needs is left.
    """
    above = wish.folder / submission.SUBMIT
    above.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock.take(above, patience_seconds=LOCK_SECONDS)
    except BlockingIOError as error:
        raise Busy(f"{wish.config.name}: {error}") from None
    try:
        _refuse_a_second(wish, after)
        folder = submission.new_folder(wish.folder)
        try:
            return _write_and_send(wish, folder, list(after), links, like)
        except slurm.PerhapsSent:
            raise
        except RuntimeError:
            if not submission.jobs(folder):
                shutil.rmtree(folder)
            raise
    finally:
        lock.release()


def _write_and_send(wish: Wish, folder: Path, after: list[str], links: int, like: Path | None) -> Submission:
    sub = _write(wish, folder, like)
    if wish.cluster.backend == "local":
        with _uninterrupted():
            detached.start(sub)
    else:
        _send_links(sub, after, links)
    return sub


def planned(wish: Wish) -> Submission:
    """Return the submission of a run as `send` would write it, with nothing written."""
    numbers = [int(folder.name) for folder in submission.folders(wish.folder)]
    return _submission(wish, wish.folder / submission.SUBMIT / str(max(numbers, default=0) + 1))


def command(sub: Submission, after: Sequence[str]) -> str:
    """Return the command line that sends a job of the submission, quoted for a shell: for people."""
    return shlex.join(script.sbatch(sub, after=list(after)))


def _checked(config: str, overrides: Sequence[str], cluster: Cluster) -> "RunConfig":
    if cluster.backend != "kubernetes":
        return check_job(Job(config, tuple(overrides), cluster.world))
    from trainer.config import checks, reading

    cfg = reading.load(config, overrides)  # the corpora are on the cluster's volume, and perhaps not here
    checks.layout(cfg, cluster.world)
    return cfg


def _refuse_a_second(wish: Wish, after: Sequence[str]) -> None:
    """Raise Busy, naming run and job, where a job of the run waits or runs that is not waited for."""
    found = state.jobs(wish.folder, os.environ)
    name = wish.config.name
    if found.problem:
        raise RuntimeError(
            f"{name}: was submitted before, and whether that job still waits or runs cannot be seen: "
            f"{found.problem}"
        )
    if found.live and found.live[-1].job not in after:
        job = found.live[-1]
        behind = f", or queue behind it with --after {job.job}" if wish.cluster.backend == "slurm" else ""
        raise Busy(
            f"{name}: job {job.job} of this run is {job.state} already: `germinal cancel {name}` "
            f"first{behind}"
        )
    holder = progress.holder(wish.folder)
    if holder and not found.live:
        raise Busy(f"{name}: {wish.folder} is in use by {holder}: submit it when that has ended")


def _submission(wish: Wish, folder: Path) -> Submission:
    cluster = wish.cluster
    return Submission(
        run=wish.config.name,
        folder=str(folder),
        run_folder=str(wish.folder),
        workdir=os.getcwd(),
        config=str(folder / submission.CONFIG),
        python=preflight.interpreter(cluster),
        code=str(folder / submission.CODE) if cluster.code == "copy" else "",
        cluster=cluster,
        source=wish.source,
        overrides=list(wish.overrides),
    )


def _write(wish: Wish, folder: Path, like: Path | None) -> Submission:
    from trainer.config import reading

    sub = _submission(wish, folder)
    Path(sub.config).write_text(reading.dump(wish.config), encoding="utf-8")
    code_state.keep(folder, folder / submission.CODE, like=like)
    path = folder / submission.SCRIPT
    path.write_text(script.TEXT)
    path.chmod(0o755)
    submission.write(sub)
    return sub


def _send_links(sub: Submission, after: list[str], links: int) -> None:
    """Send the jobs of a chain, each behind the one before it."""
    folder = Path(sub.folder)
    lines = []
    for _ in range(links):
        words = script.sbatch(sub, after=after)
        lines.append(shlex.join(words))
        (folder / submission.COMMAND).write_text("\n".join(lines) + "\n", errors="surrogateescape")
        with _uninterrupted():
            job = slurm.send(words, os.environ)
            submission.add_job(folder, job)
        after = [job]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back until the block ends: a job that was sent, and is not remembered, would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, detached.STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def resolve_after(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the ids of jobs that `--after JOB|RUN` means. ValueError, one line, for a run without a job."""
    found = []
    for word in words:
        if word.isdecimal():
            found.append(word)
            continue
        queue = state.jobs(state.find(word, environ), environ)
        if queue.problem:
            raise RuntimeError(f"--after {word}: {queue.problem}")
        if not queue.live:
            raise ValueError(f"--after {word}: no job of this run waits or runs: submit without --after")
        found.append(queue.live[-1].job)
    return found
