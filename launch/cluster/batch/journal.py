"""What the batch step says, notes for `germinal status`, writes into the run's events, and tells others."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.exit_codes import ASKED_TO_STOP, DONE
from common.standard_error import write_line
from launch.cluster import submission as records
from launch.cluster.batch.run_disk import RunDisk
from launch.cluster.batch.step import Placement
from launch.cluster.submission import Submission
from launch.local.rank_log import RankLog
from launch.supervise.policy import Again, Attempt, Decision
from launch.supervise.record import record
from trainer.folder.fence import EPOCH
from trainer.process.notify import Notifier


class Journal:
    """The record of one job. Where a record cannot be written, as on a full disk, the job's output says so,
    and the job goes on.

    submission: what is run.
    job: the job's number.
    notify: `supervise.notify` of the run's config.
    disk: does all work on the run folder.
    """

    def __init__(self, submission: Submission, job: str, notify: str, disk: RunDisk) -> None:
        self._submission = submission
        self._job = job
        self._folder = Path(submission.folder)
        self._run_folder = Path(submission.run_folder)
        self._disk = disk
        self._notifier = Notifier(notify, submission.run, self._run_folder).begin()

    def close(self) -> None:
        """Send what waits to be sent."""
        self._notifier.finish()

    def say(self, text: str) -> None:
        """Write one line into the job's output."""
        write_line(f"{datetime.now(UTC).isoformat(timespec='seconds')} job {self._job}: {text}")

    def note(self, kind: str, reason: str, **fields: Any) -> None:
        """Say what happens, and note it. `fields`: of `records.Note`."""
        self.say(f"{kind}: {reason}")
        note = records.Note(time.time(), self._job, kind, reason, **fields)
        self._write(lambda: records.note(self._folder, note))

    def cancelled(self) -> None:
        """Write that the submission was cancelled."""
        self._write(lambda: records.ask_to_cancel(self._folder))

    def decided(self, attempt: Attempt, decision: Decision, *, start: int, kind: str = "") -> None:
        """Write what follows an attempt into the run's events, and tell others."""
        job = self._job
        self._write(lambda: record(self._run_folder, attempt, decision, kind=kind, start=start, job=job))
        if isinstance(decision, Again):
            about = {"rank": attempt.rank, "host": attempt.host, "code": attempt.code, "job": self._job}
            about |= {"restart": decision.number, "from_step": attempt.saved_after}
            self._notifier.tell("restart", attempt.step, decision.reason, **about)

    def end(self, code: int, reason: str, step: int) -> None:
        """Write that the submission is over, and tell others."""
        ending = records.Ending(time.time(), self._job, code, reason)
        self._write(lambda: records.end(self._folder, ending))
        self._notifier.tell("end", step, reason, code=code, job=self._job)

    def new_log(self, where: Placement, start: int) -> Callable[[int], RankLog]:
        """Return what makes the log of a rank, of a start that is about to begin."""
        before = self._disk.do(self._epoch)

        def new_log(rank: int) -> RankLog:
            file = self._run_folder / "logs" / f"rank-{rank:05d}.log"
            # Lines wait until ranks hold the run: one that another job holds gets no lines of ours.
            log = RankLog(file, lambda: self._epoch() != before)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            heading = f"job {self._job}, start {start}, on {where.host_of(rank)}"
            log.line(f"=== {now} rank {rank} of {where.world}: {heading}".encode())
            return log

        return new_log

    def _write(self, write: Callable[[], object]) -> None:
        try:
            self._disk.do(write)
        except OSError as error:
            self.say(f"{self._folder} cannot be written, so this is not noted: {error.strerror or error}")

    def _epoch(self) -> bytes:
        try:
            return (self._run_folder / EPOCH).read_bytes()
        except OSError:
            return b""


def in_words(attempt: Attempt) -> str:
    """Return how an attempt ended, for people."""
    if attempt.code == DONE:
        return "done"
    if attempt.code in ASKED_TO_STOP:
        at = f"saved at step {attempt.saved_after}" if attempt.under_way else "before the first step"
        if attempt.asked_to_stop:
            return f"asked to stop, {at}"
        return (
            f"the ranks left to be run again (another job holds the run, or a rank was asked to stop), {at}"
        )
    return str(attempt)
