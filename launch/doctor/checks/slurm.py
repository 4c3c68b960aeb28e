"""SLURM's settings against what a run needs: the time for a save, what preemption does."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.programs import output_of
from launch.doctor.check import Circumstances
from launch.doctor.finding import Finding, note, ok, warning
from trainer.folder.run_folder import EVENTS
from trainer.record.events import read_events

# Of KillWait, what is left for the save: the step under way has to end first, and ranks have to leave.
SHARE_FOR_SAVE = 0.5
CONFIG = Path("/etc/slurm/slurm.conf")


def check(at: Circumstances) -> Iterator[Finding]:
    """`scontrol show config`; nothing where there is no SLURM."""
    try:
        text = output_of(["scontrol", "show", "config"])
    except (RuntimeError, TimeoutError) as problem:
        if "SLURM_JOB_ID" in at.environ or CONFIG.is_file():  # else a client that nobody has set up
            text = f"SLURM does not answer: {problem}"
            yield warning("slurm.answers", text, "see `scontrol ping`; ask the administrator")
        return
    if text is None:
        return
    settings = read(text)
    yield ok("slurm.version", f"SLURM {settings.get('SLURM_VERSION', 'of an unknown version')}")
    yield from time_to_save(settings, longest_save(at.folders[0]))
    yield from preemption(settings)
    yield from processes(settings)


def read(text: str) -> dict[str, str]:
    """`scontrol show config` → name → value: `KillWait                = 30 sec` → {"KillWait": "30 sec"}."""
    return dict(re.findall(r"^(\S+)\s*=[ \t]*(.*?)\s*$", text, flags=re.MULTILINE))


def seconds(value: str) -> float:
    """`30 sec` → 30; `00:01:30` → 90; inf where there is no number."""
    if found := re.match(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", value):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    found = re.match(r"\d+", value)
    return float(found[0]) if found else float("inf")


def longest_save(folder: Path) -> float:
    """The longest save that the run in `folder` recorded, in seconds; 0 where there is none."""
    longest = 0.0
    with contextlib.suppress(OSError):
        for event in read_events(folder / EVENTS):
            took = event.get("seconds")
            if event["kind"] == "save" and isinstance(took, int | float):
                longest = max(longest, took)
    return longest


def time_to_save(settings: Mapping[str, str], save_seconds: float) -> Iterator[Finding]:
    """KillWait: between SIGTERM at a time limit and SIGKILL, the step under way ends and the run saves."""
    wait = seconds(settings.get("KillWait", ""))
    text = f"KillWait is {wait:g} s: at a time limit, SIGKILL comes so long after SIGTERM"
    remedy = (
        "have the signal earlier: `germinal submit --signal-seconds 300`, or `#SBATCH --signal=B:USR1@300` "
        "in a script of your own (seconds before the limit)"
    )
    if save_seconds > SHARE_FOR_SAVE * wait:
        text += f", and this run's saves took up to {save_seconds:.3g} s"
        yield warning("slurm.kill_wait", text, remedy)
    elif save_seconds:
        yield ok("slurm.kill_wait", f"{text}; this run's saves took up to {save_seconds:.3g} s")
    else:
        yield note(
            "slurm.kill_wait",
            text,
            f"if a step and a save take more than half of that, {remedy}; "
            "with --folder RUN the doctor compares the saves that RUN recorded",
        )


def preemption(settings: Mapping[str, str]) -> Iterator[Finding]:
    """What happens to a job that has to make way, and whether SLURM may queue a job again."""
    mode = settings.get("PreemptMode", "OFF").upper()
    if "SUSPEND" in mode or "GANG" in mode:
        text = f"PreemptMode={mode}: a preempted job is stopped where it is, and its GPUs' memory stays full"
        yield note(
            "slurm.preempt", text, "raise supervise.hang_seconds if stopped ranks are taken for hanging ones"
        )
    elif "CANCEL" in mode:
        text = f"PreemptMode={mode}: a preempted job ends after its grace time, and SLURM starts it no more"
        remedy = (
            "`germinal submit` puts the job back into the queue itself, or with --chain 5 another follows"
        )
        yield note("slurm.preempt", text, remedy)
    else:
        yield ok("slurm.preempt", f"PreemptMode={mode}")
    if settings.get("JobRequeue", "1") == "0":
        text = (
            "JobRequeue=0: SLURM does not queue a preempted job, or one whose node was lost, again by itself"
        )
        yield note("slurm.requeue", text, "submit with `sbatch --requeue`")


def processes(settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether SLURM ends every process of a job."""
    tracking = settings.get("ProctrackType", "").rpartition("/")[2]
    if tracking in ("pgid", "linuxproc"):
        text = f"ProctrackType=proctrack/{tracking}: processes that leave their session may outlive a job"
        yield note(
            "slurm.processes", text, "if GPUs are still held when a job begins: ask for proctrack/cgroup"
        )
