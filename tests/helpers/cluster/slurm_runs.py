"""Runs on the SLURM of the tests: sent by `germinal submit`, waited for, compared with an undisturbed run."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm import Slurm
from whole_runs import GERMINAL, consumed, environment, records, whole_steps

STEPS = 40
BATCH = 8
LAYOUT = {"parallel__dp_shard": 2, "parallel__tp": 2}
SMALL = {
    **LAYOUT,
    "train__steps": STEPS,
    "train__global_batch": BATCH,
    "train__eval_every": 20,
    "checkpoint__every": 10,
}
TWO_NODES = ("--nodes", 2, "--nproc", 2, "--code", "installed")


@dataclass(frozen=True)
class SlurmRun:
    """One submission of a run.

    slurm: where it was sent to.
    folder: the run folder.
    job: its number.
    submission: how many submissions the run has with this one.
    """

    slurm: Slurm
    folder: Path
    job: int
    submission: int = 1

    def wait_for_step(self, step: int, *, seconds: float = 240.0) -> None:
        """Wait until the run has recorded a step."""
        self._until(lambda: whole_steps(self.folder / "metrics.jsonl") >= step, f"step {step}", seconds)

    def wait_for_end(self, *, seconds: float = 300.0) -> dict[str, object]:
        """Wait until the submission is over; return what end.json says."""
        self._until((self._own / "end.json").exists, "the end", seconds)
        ending: dict[str, object] = json.loads((self._own / "end.json").read_text())
        return ending

    def wait_for_note(self, kind: str, *, count: int = 1, seconds: float = 240.0) -> None:
        """Wait until the job has noted something so many times."""
        self._until(lambda: len(self.notes(kind)) >= count, f"{count} notes `{kind}`", seconds)

    def notes(self, kind: str) -> list[dict[str, object]]:
        return [note for note in records(self._own / "notes.jsonl") if note["kind"] == kind]

    def log(self) -> str:
        """What the jobs of the submission printed."""
        return "".join(file.read_text() for file in sorted(self._own.glob("log-*.txt")))

    @property
    def _own(self) -> Path:
        return self.folder / "submit" / str(self.submission)

    def _until(self, reached: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.log()[-6000:]}"
            over = self.slurm.state(self.job) in ("FAILED", "CANCELLED", "COMPLETED", "TIMEOUT", "PREEMPTED")
            assert not over or reached(), f"the job is over before {what}\n{self.log()[-6000:]}"
            time.sleep(0.2)


def submit(
    slurm: Slurm,
    config: Path,
    folder: Path,
    *words: object,
    submission: int = 1,
    options: tuple[object, ...] = (),
) -> SlurmRun:
    """Send a run over n1 and n2 to `folder`; `words`: key=value."""
    command = ["submit", config, f"run_dir={folder}", *words, *TWO_NODES, *options]
    said = germinal(slurm, *command)
    assert said.returncode == 0, said.stderr
    return sent(slurm, folder, submission=submission)


def sent(slurm: Slurm, folder: Path, *, submission: int = 1) -> SlurmRun:
    """A submission that was sent."""
    jobs = records(folder / "submit" / str(submission) / "jobs.jsonl")
    return SlurmRun(slurm, folder, int(jobs[0]["job"]), submission)


def germinal(slurm: Slurm, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run a `germinal` command as on the submit host."""
    return slurm.run(GERMINAL, *words, check=False, env=own_environment())


def own_environment() -> dict[str, str]:
    """The environment of a test's commands, without what names this session's own network."""
    keep = environment()
    keep.pop("GLOO_SOCKET_IFNAME", None)  # set for ranks of one machine (tests/conftest.py)
    return keep


def assert_undisturbed(run: Path, reference: Path, *, steps: int = STEPS, evaluations: bool = True) -> None:
    """The metrics are those of the undisturbed run but for times, and each sequence was consumed once.

    evaluations: whether those too; not where `run` was to go on beyond the end of the reference.
    """
    ours, theirs = (
        [line for line in records(folder / "metrics.jsonl") if evaluations or "loss" in line]
        for folder in (run, reference)
    )
    recorded = [line["step"] for line in ours if "loss" in line]
    assert recorded == list(range(1, steps + 1)), f"{run}: steps {recorded}"
    unlike = [pair for pair in zip(ours, theirs) if pair[0] != pair[1]]
    assert not unlike, f"{run}: {len(unlike)} lines differ, the first {unlike[0]}"
    assert len(ours) == sum(line["step"] <= steps for line in theirs), run
    assert consumed(run) == list(range(steps * BATCH))
