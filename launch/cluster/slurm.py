"""SLURM's programs, called so that every version from 20 on answers alike; each within a bounded time.

`sbatch --parsable`, `squeue`, `scontrol show job`, `scontrol requeue`, `scancel` and `sinfo` are all that is
used: no accounting (sacct), no JSON (which needs plugins that many clusters lack).
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import CompletedProcess

from common.programs import run
from parallel.world.slurm import clean

# Seconds that a program may take. What sends or decides waits for a busy controller; nobody waits for a list
# so long.
SENDING, ASKING = 60.0, 15.0

_FIELDS = "%i|%T|%r|%S|%L|%N|%D"
# With the columns of each.
_FACTS = {"State": 40, "Reason": 80, "RestartCnt": 20, "PreemptTime": 30, "NodeList": 16384}
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True)
class QueuedJob:
    """One job as squeue shows it.

    job: its id.
    state: SLURM's word, such as PENDING or RUNNING.
    reason: why the job waits, or "None".
    start: when it started, or is expected to; "N/A" where that is not known.
    left: of its time limit.
    nodes: its nodes, as n[1-2]; empty while it waits.
    """

    job: str
    state: str
    reason: str
    start: str
    left: str
    nodes: str

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good. One that is requeued, or completing, has not."""
        return self.state in _ENDED


class PerhapsSent(RuntimeError):
    """Whether sbatch has sent the job is not known."""


def send(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run sbatch; return the job's id.

    Raises:
        PerhapsSent: sbatch did not answer in time, or printed no id.
        RuntimeError: one line, with what sbatch says where it refuses.
    """
    try:
        done = _run(words, environ, SENDING)
    except TimeoutError as error:
        raise PerhapsSent(
            f"{error}: the job may have been sent: look with squeue before you try again"
        ) from None
    if done.returncode:
        raise RuntimeError(f"sbatch refused the job: {_last_words(done.stderr) or f'exit {done.returncode}'}")
    # A site's own sbatch may print more. With several clusters: ID;CLUSTER.
    ids = [line.partition(";")[0] for line in done.stdout.splitlines() if re.fullmatch(r"\d+(;.*)?", line)]
    if not ids:
        raise PerhapsSent(f"sbatch printed no job id but {done.stdout.strip()[:200]!r}: look with squeue")
    return ids[-1]


def queue(jobs: Sequence[str], environ: Mapping[str, str]) -> dict[str, QueuedJob]:
    """Return those of the jobs that SLURM still knows: an ended job is forgotten after some minutes.

    RuntimeError, one line, where squeue is missing, fails, does not answer in time, or prints something else.
    """
    if not jobs:
        return {}
    words = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", f"--format={_FIELDS}"]
    done = _ask(words, environ, ASKING)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RuntimeError(f"squeue failed: {_last_words(done.stderr) or f'exit {done.returncode}'}")
    found, foreign = {}, ""
    for line in filter(str.strip, done.stdout.splitlines()):
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == len(_FIELDS.split("|")) and parts[0] in jobs and re.fullmatch("[A-Z_]+", parts[1]):
            found[parts[0]] = QueuedJob(*parts[:6])
        else:
            foreign = foreign or line.strip()
    if foreign and not found:  # a site's own squeue may print more, but not instead
        raise RuntimeError(f"squeue printed no list of jobs but {foreign[:200]!r}")
    return found


def facts(job: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what squeue says of a job: State, Reason, RestartCnt, PreemptTime, NodeList; {} where it does
    not say.

    Each stands in columns of its own: a name, a folder or a comment of the job, which `scontrol show job`
    mixes with them, may hold anything, JobState=… included.
    """
    form = ",".join(f"{name}:{width}" for name, width in _FACTS.items())
    words = ["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={form}"]
    try:
        done = _ask(words, environ, ASKING)
    except RuntimeError:
        return {}
    line, found = done.stdout.partition("\n")[0], {}
    for name, width in _FACTS.items() if line and not done.returncode else ():
        found[name], line = line[:width].strip(), line[width:]
    return found


def output_of(job: str, environ: Mapping[str, str]) -> str:
    """Return the path of the job's output, "" where SLURM does not know the job. It may hold spaces."""
    try:
        done = _ask(["scontrol", "show", "job", job], environ, ASKING)
    except RuntimeError:
        return ""
    found = re.findall(r"^\s*StdOut=(.*)$", done.stdout, flags=re.MULTILINE)
    return found[-1] if found else ""


def cancel(jobs: Sequence[str], environ: Mapping[str, str], *, batch_signal: str = "") -> None:
    """Take jobs out of the queue and end those that run; with `batch_signal`, only send that to the batch
    step. RuntimeError, one line, where scancel fails.
    """
    how = ["--batch", f"--signal={batch_signal}"] if batch_signal else []
    done = _ask(["scancel", *how, *jobs], environ, ASKING)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise RuntimeError(f"scancel failed: {_last_words(done.stderr) or f'exit {done.returncode}'}")


def requeue(job: str, environ: Mapping[str, str]) -> str:
    """Have SLURM end a job and start it again later; return why it did not, else ""."""
    try:
        done = _ask(["scontrol", "requeue", job], environ, SENDING)
    except RuntimeError as error:
        return str(error)
    return (_last_words(done.stderr) or f"exit {done.returncode}") if done.returncode else ""


def node_states(nodes: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return node → state, such as idle or down*; {} where sinfo does not say."""
    words = ["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T"]
    try:
        done = _ask(words, environ, SENDING)
    except RuntimeError:
        return {}
    lines = done.stdout.splitlines() if not done.returncode else []
    return dict(line.split(maxsplit=1) for line in lines if " " in line)


def partitions(environ: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Return the partitions: name → (time limit, nodes); {} where sinfo does not say."""
    if shutil.which("sinfo", path=environ.get("PATH")) is None:
        return {}
    try:
        done = _ask(["sinfo", "--noheader", "--format=%R|%l|%D"], environ, ASKING)
    except RuntimeError:
        return {}
    found: dict[str, tuple[str, int]] = {}
    for line in done.stdout.splitlines() if not done.returncode else ():
        name, limit, nodes = (*(part.strip() for part in line.split("|")), "", "")[:3]
        if name and nodes.isdecimal():
            found[name] = (limit, int(nodes) + found.get(name, ("", 0))[1])
    return found


def _ask(words: Sequence[str], environ: Mapping[str, str], seconds: float) -> "CompletedProcess[str]":
    """Run a program. RuntimeError, one line, where it cannot be run or takes too long."""
    try:
        return _run(words, environ, seconds)
    except TimeoutError as error:
        raise RuntimeError(str(error)) from None


def _run(words: Sequence[str], environ: Mapping[str, str], seconds: float) -> "CompletedProcess[str]":
    """Run a program. RuntimeError where it cannot be run, TimeoutError where it takes too long."""
    try:
        return run(words, seconds=seconds, environ=clean(environ) | {"SLURM_TIME_FORMAT": "standard"})
    except TimeoutError:
        raise
    except FileNotFoundError:
        raise RuntimeError(
            f"{words[0]}: no such program here: SLURM's programs are on a cluster's login nodes"
        ) from None
    except OSError as error:  # an argument that is too long
        raise RuntimeError(f"{words[0]} cannot be run: {os.strerror(error.errno or 0)}") from None


def _last_words(text: str) -> str:
    """Return the last line of an error, without the program's name before it."""
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"^(sbatch|squeue|scancel|slurm_load_jobs)(: | )(error: )*", "", lines[-1]) if lines else ""
