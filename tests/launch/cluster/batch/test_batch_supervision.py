"""The batch step's decisions, with a SLURM and ranks that the test makes up."""

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.exit_codes import DONE, STOPPED, WRONG
from launch.cluster import submission as records
from launch.cluster.batch import allocation, earlier_jobs, supervision
from launch.cluster.batch.allocation import Allocation, JobState
from launch.cluster.batch.journal import Journal
from launch.cluster.batch.run_disk import RunDisk
from launch.cluster.batch.step import StepEnd
from launch.cluster.batch.supervision import Supervision
from launch.cluster.cluster import Cluster
from launch.cluster.submission import Submission
from launch.local import folder_work
from launch.local.signal_inbox import SignalInbox
from launch.supervise.evidence import Before
from launch.supervise.policy import Attempt
from trainer.config import reading
from trainer.config.run_config import RunConfig

GOOD = Attempt(1, 500, 480, 500, under_way=True, rank=0, host="n1")  # failed at step 500, saved there
HELD = Attempt(STOPPED)  # as where another job holds the run
WRONG_AT_ITS_START = Attempt(WRONG, 500, 500, 500, rank=0, host="n1")


class FakeAllocation(Allocation):
    requeued = 0
    answers: Sequence[str] = ()  # of scontrol; then it takes the request
    now = JobState("RUNNING", "None")

    def state(self) -> JobState:
        return self.now

    def present(self) -> tuple[str, ...]:
        return self.nodes

    def requeue(self) -> str:
        type(self).requeued += 1
        answer, *type(self).answers = *self.answers, ""
        return answer


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    file = tmp_path / "tiny.yaml"
    file.write_text("model: {heads: 4, hidden: 64}\ndata: {sources: [{path: corpus}]}\ntrain: {steps: 600}")
    return reading.load(file)


@pytest.fixture
def supervise(tmp_path, cfg, monkeypatch):
    """Supervise ranks that end as `attempts` say; return the job's exit code."""
    folder = tmp_path / "run/submit/1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(FakeAllocation, "requeued", 0)
    monkeypatch.setattr("launch.supervise.policy.WAITS", (0.0,))

    def supervise(
        attempts: Sequence[Attempt], *, asked: int = 0, run_step: Callable[..., StepEnd] | None = None
    ) -> int:
        paths = (str(folder), str(folder.parents[1]), str(tmp_path), "config.yaml", "python", "")
        submission = Submission("tiny", *paths, Cluster(nodes=1, nproc=1))
        left = list(attempts)
        signals = SignalInbox([signal.SIGUSR1])
        disk = RunDisk(folder.parents[1], signals)
        journal = Journal(submission, "7", "", disk)
        allocation = FakeAllocation("7", 0, ("n1",))
        found = Supervision(submission, cfg, allocation, signals, {}, journal, disk)

        def attempt(nodes: tuple[str, ...], before: Before) -> Attempt:
            found.starts += 1
            found._note("start", "made up", step=before.saved)
            return left.pop(0)

        if run_step:
            monkeypatch.setattr(supervision, "run_step", run_step)
        else:
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


AWAY = "Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("answers", "asked", "last"),
    [
        ([AWAY, AWAY], 3, ("requeue", "requeued")),
        ([AWAY] * 99, 4, ("stop", f"SLURM did not say whether it requeues the job: {AWAY}; where squeue")),
        (["Requested operation is presently disabled"], 1, ("stop", "SLURM does not requeue the job: Req")),
    ],
)
def test_a_controller_that_is_away_is_asked_again(
    answers: list[str], asked: int, last: tuple[str, str], supervise, tmp_path, monkeypatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(allocation.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(allocation.time, "sleep", lambda seconds: now.append(now.pop() + 250.0))
    monkeypatch.setattr(FakeAllocation, "answers", answers)
    assert supervise([], asked=signal.SIGUSR1) == STOPPED
    assert FakeAllocation.requeued == asked
    note = records.last_note(tmp_path / "run/submit/1")
    assert note is not None and note.kind == last[0] and last[1] in note.reason


def test_jobs_that_are_requeued_before_they_start_a_rank_come_to_an_end(supervise, tmp_path) -> None:
    for _ in range(earlier_jobs.FRUITLESS_STARTS):
        assert supervise([], asked=signal.SIGUSR1) == STOPPED
    assert supervise([]) == 1
    assert FakeAllocation.requeued == earlier_jobs.FRUITLESS_STARTS and kinds(tmp_path)[-1] == "stop"
    ending = records.ending(tmp_path / "run/submit/1")
    assert ending is not None and ending.reason.endswith(
        "the last one: asked to save (time limit or preemption); nothing is saved; requeued"
    )


def test_jobs_that_find_the_run_held_say_so_at_the_end(supervise, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(supervision, "HELD_WAITS", ())
    for _ in range(earlier_jobs.FRUITLESS_STARTS):
        assert supervise([HELD]) == STOPPED
    assert supervise([]) == 1
    ending = records.ending(tmp_path / "run/submit/1")
    assert ending is not None and "the last one: the ranks left to be run again (another job" in ending.reason


def test_the_waits_for_a_run_that_is_held_begin_anew_after_a_checkpoint(supervise, monkeypatch) -> None:
    monkeypatch.setattr(supervision, "HELD_WAITS", (0.0, 0.0))
    assert supervise([HELD, HELD, GOOD, HELD, HELD, Attempt(DONE, 600)]) == DONE
    assert FakeAllocation.requeued == 0


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (JobState("RUNNING", "None"), "asked to save (time limit or preemption)"),
        (JobState("", ""), "asked to save (time limit or preemption)"),  # squeue does not answer
        (JobState("RUNNING", "None", preempted=True), "preempted"),  # with a grace time
        (JobState("COMPLETING", "None", preempted=True), "preempted"),
        (JobState("COMPLETING", "TimeLimit"), "the time limit is reached"),
        (JobState("COMPLETING", "NodeDown"), "SLURM ends the job (NodeDown)"),
        (JobState("COMPLETING", "None"), ""),
        (JobState("CANCELLED", "None"), ""),
    ],
)
def test_only_scancel_ends_the_submission(
    now: JobState, reason: str, supervise, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(FakeAllocation, "now", now)
    saved = Attempt(STOPPED, 500, 480, 500, under_way=True, asked_to_stop=True)
    assert supervise([saved]) == STOPPED
    *_, last = records.notes(tmp_path / "run/submit/1")
    ending = records.ending(tmp_path / "run/submit/1")
    if reason:
        assert ending is None and FakeAllocation.requeued == 1
        assert (last.kind, last.reason) == ("requeue", f"{reason}; nothing is saved; requeued")
    else:
        assert ending is not None and FakeAllocation.requeued == 0
        assert ending.reason == "cancelled by scancel; nothing is saved"


def test_ranks_that_slurm_has_asked_alone_are_not_started_again(supervise, tmp_path, monkeypatch) -> None:
    """As where the grace time of a preemption begins."""
    monkeypatch.setattr(FakeAllocation, "now", JobState("RUNNING", "None", preempted=True))
    assert supervise([Attempt(STOPPED, 500, 480, 500, under_way=True)]) == STOPPED
    assert FakeAllocation.requeued == 1 and kinds(tmp_path) == ["start", "requeue"]


def test_a_job_that_is_cancelled_while_it_waits_to_be_requeued_stays_cancelled(
    supervise, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(supervision, "HELD_WAITS", ())
    monkeypatch.setattr(FakeAllocation, "now", JobState("COMPLETING", "None"))
    assert supervise([HELD]) == STOPPED
    assert FakeAllocation.requeued == 0 and records.is_cancelled(tmp_path / "run/submit/1")


def test_srun_is_not_believed_that_a_run_is_done_before_its_last_step(supervise, tmp_path) -> None:
    """Where srun loses a node, it may end with 0, and what it says of the node may be lost."""
    ends = [400, 600]

    def run_step(*_: object) -> StepEnd:
        step = ends.pop(0)
        with (tmp_path / "run/events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "start", "step": 0}) + "\n")
        (tmp_path / "run/metrics.jsonl").write_text(json.dumps({"step": step, "loss": 1.0}) + "\n")
        return StepEnd(0)

    assert supervise([], run_step=run_step) == DONE
    assert kinds(tmp_path) == ["start", "end", "restart", "start", "end"] and not ends
    codes = [note.code for note in records.notes(tmp_path / "run/submit/1") if note.kind == "end"]
    assert codes == [1, 0]


@pytest.fixture
def hanging(monkeypatch):
    """A disk that does not answer; how long it is waited for is a part of a second."""
    answers = threading.Event()
    monkeypatch.setattr(folder_work, "FOLDER_SECONDS", 0.3)
    monkeypatch.setattr(folder_work, "ASKED_SECONDS", 0.1)

    def hang(*_: object, **__: object) -> None:
        assert answers.wait(20), "this was waited for"

    yield hang
    answers.set()


@pytest.mark.parametrize("asked", [0, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("owner", "name"), [(records, "notes"), (records, "is_cancelled"), (supervision, "newest_saved")]
)
def test_a_disk_that_hangs_does_not_keep_a_job_from_the_queue(
    owner, name: str, asked: int, supervise, hanging, monkeypatch
) -> None:
    monkeypatch.setattr(owner, name, hanging)
    assert supervise([], asked=asked) == STOPPED
    assert FakeAllocation.requeued == 1


def test_a_disk_that_hangs_after_a_request_to_save_does_not_keep_a_job_from_the_queue(
    supervise, hanging, monkeypatch
) -> None:
    monkeypatch.setattr(Before, "attempt", hanging)
    for asked_to_stop in (True, False):
        end = StepEnd(STOPPED, asked_to_stop=asked_to_stop)
        assert supervise([], run_step=lambda *_, end=end: end) == STOPPED
    assert FakeAllocation.requeued == 2


def test_a_disk_that_hangs_ends_no_job_where_notes_are_written(
    supervise, hanging, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(records, "note", hanging)
    assert supervise([GOOD, Attempt(DONE, 600)]) == DONE
    assert "so this is not noted: " in capfd.readouterr().err


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
