"""The batch step's decisions, with a SLURM and ranks that the test makes up."""

import errno
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.exit_codes import DONE, STOPPED, WRONG
from launch.cluster import submission as records
from launch.cluster.batch import supervision
from launch.cluster.batch.allocation import Allocation, JobState
from launch.cluster.batch.journal import Journal
from launch.cluster.batch.supervision import Supervision
from launch.cluster.cluster import Cluster
from launch.cluster.submission import Submission
from launch.local.signal_inbox import SignalInbox
from launch.supervise.evidence import Before
from launch.supervise.policy import Attempt
from trainer.config import reading
from trainer.config.run_config import RunConfig

GOOD = Attempt(1, 500, 480, 500, under_way=True, rank=0, host="n1")  # failed at step 500, saved there
WRONG_AT_ITS_START = Attempt(WRONG, 500, 500, 500, rank=0, host="n1")


class FakeAllocation(Allocation):
    requeued = 0

    def state(self) -> JobState:
        return JobState("RUNNING")

    def present(self) -> tuple[str, ...]:
        return self.nodes

    def requeue(self) -> str:
        type(self).requeued += 1
        return ""


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    file = tmp_path / "tiny.yaml"
    file.write_text("model: {heads: 4, hidden: 64}\ndata: {sources: [{path: corpus}]}")
    return reading.load(file)


@pytest.fixture
def supervise(tmp_path, cfg, monkeypatch):
    """Supervise ranks that end as `attempts` say; return the job's exit code."""
    folder = tmp_path / "run/submit/1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(FakeAllocation, "requeued", 0)
    monkeypatch.setattr("launch.supervise.policy.WAITS", (0.0,))

    def supervise(attempts: Sequence[Attempt], *, asked: int = 0) -> int:
        paths = (str(folder), str(folder.parents[1]), str(tmp_path), "config.yaml", "python", "")
        submission = Submission("tiny", *paths, Cluster(nodes=1, nproc=1))
        left = list(attempts)
        signals = SignalInbox([signal.SIGUSR1])
        journal = Journal(submission, "7", "")
        allocation = FakeAllocation("7", 0, ("n1",))
        found = Supervision(submission, cfg, allocation, signals, {}, journal)

        def attempt(nodes: tuple[str, ...], before: Before) -> Attempt:
            found.starts += 1
            found._note("start", "made up", step=before.saved)
            return left.pop(0)

        monkeypatch.setattr(found, "_attempt", attempt)
        try:
            if asked:
                os.kill(os.getpid(), asked)
            code = found.run()
        finally:
            signals.close()
        assert not left
        return code

    return supervise


def kinds(tmp_path: Path) -> list[str]:
    return [note.kind for note in records.notes(tmp_path / "run/submit/1")]


def test_a_later_start_that_calls_the_config_wrong_is_started_again(supervise, tmp_path) -> None:
    """A GPU that is lost, or a disk that is away: the config has run before."""
    assert supervise([GOOD, WRONG_AT_ITS_START, Attempt(DONE, 600)]) == DONE
    assert kinds(tmp_path) == ["start", "restart", "start", "restart", "start"]


def test_the_first_start_that_calls_the_config_wrong_ends_the_submission(supervise, tmp_path) -> None:
    assert supervise([Attempt(WRONG)]) == WRONG
    ending = records.ending(tmp_path / "run/submit/1")
    assert ending is not None and (ending.code, "config is wrong" in ending.reason) == (WRONG, True)


def test_a_job_that_was_asked_to_save_while_it_began_is_requeued_and_starts_no_rank(
    supervise, tmp_path
) -> None:
    assert supervise([], asked=signal.SIGUSR1) == STOPPED
    assert FakeAllocation.requeued == 1 and kinds(tmp_path) == ["requeue"]


def test_jobs_that_are_requeued_before_they_start_a_rank_come_to_an_end(supervise, tmp_path) -> None:
    for _ in range(supervision.FRUITLESS_STARTS):
        assert supervise([], asked=signal.SIGUSR1) == STOPPED
    assert supervise([]) == 1
    assert FakeAllocation.requeued == supervision.FRUITLESS_STARTS and kinds(tmp_path)[-1] == "stop"


def test_a_full_disk_is_one_line_and_the_job_is_requeued(supervise, tmp_path, monkeypatch, capfd) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records, "note", full)
    asked = Attempt(STOPPED, 500, 480, 500, under_way=True, asked_to_stop=True)
    assert supervise([asked]) == STOPPED
    assert FakeAllocation.requeued == 1
    said = capfd.readouterr().err
    assert said.count("No space left on device") == said.count("so this is not noted") == 2
    monkeypatch.setattr(records, "end", full)
    assert supervise([Attempt(DONE, 600)]) == DONE


def test_a_torn_note_costs_no_other(tmp_path, monkeypatch) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_bytes(b'{"time": 1.0, "job": "7", "ki')
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    for job in ("8", "9"):
        records.note(tmp_path, records.Note(1.0, job, "start"))
    assert [json.loads(line)["job"] for line in notes.read_text().splitlines()[1:]] == ["8", "9"]
