"""Supervises the ranks of a job: one srun step after another, until the run is done, requeued or given up."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.exit_codes import DONE, FAILED, STOPPED
from launch.cluster import submission as records
from launch.cluster.batch.allocation import Allocation
from launch.cluster.batch.earlier_jobs import fruitless
from launch.cluster.batch.journal import Journal, in_words
from launch.cluster.batch.placing import Placing
from launch.cluster.batch.rank_words import allocated_cpus, rank_environment, rank_words
from launch.cluster.batch.run_disk import RunDisk
from launch.cluster.batch.step import Placement, StepEnd, run_step, srun
from launch.cluster.batch.step_output import StepOutput
from launch.cluster.submission import Note, Submission
from launch.local.folder_work import FolderHangs
from launch.local.signal_inbox import SignalInbox
from launch.supervise.evidence import Before, newest_saved
from launch.supervise.policy import Again, Attempt, Leave, decide
from trainer.config import checks
from trainer.folder.run_folder import EVENTS
from trainer.record.events import ended_early

if TYPE_CHECKING:
    from trainer.config.run_config import RunConfig

# Before the ranks are started again that found the run held by another job; then the job is requeued.
HELD_WAITS = (10.0, 30.0, 60.0)


@dataclass
class Supervision:
    """The ranks of one job.

    submission: what is run.
    cfg: the run's config.
    allocation: the job.
    signals: those that have arrived.
    environ: of this process.
    journal: where decisions are written.
    disk: does all work on the run folder. Where the folder does not answer, the job goes back to the queue.
    attempts: how the starts of this job ended.
    starts: how many there were.
    held: how many of them found the run held by another job, since the newest checkpoint.
    """

    submission: Submission
    cfg: "RunConfig"
    allocation: Allocation
    signals: SignalInbox
    environ: Mapping[str, str]
    journal: Journal
    disk: RunDisk
    attempts: list[Attempt] = field(default_factory=list)
    starts: int = 0
    held: int = 0

    def __post_init__(self) -> None:
        cluster = self.submission.cluster
        self.folder = Path(self.submission.folder)
        self.run_folder = Path(self.submission.run_folder)
        self.placing = Placing(cluster.nodes, lambda nodes: self._fits(nodes * cluster.nproc))

    def run(self) -> int:
        """Run the ranks until nothing is left to do in this job; return the job's exit code."""
        try:
            return self._run()
        except FolderHangs as hangs:
            if self.signals.take():
                return self._asked(Attempt(STOPPED, asked_to_stop=True))
            return self._requeue(str(hangs))

    def _run(self) -> int:
        notes = self.disk.do(lambda: list(records.notes(self.folder)))
        if (code := self._is_over(notes)) is not None:
            return code
        if any(note.kind == "end" for note in notes):
            # This is no first start: what fails now has worked before, in an earlier job.
            saved = self.disk.do(lambda: newest_saved(self.run_folder))
            self.attempts.append(Attempt(STOPPED, step=-1, saved_before=saved, saved_after=saved))
        while True:
            if (code := self._wait(0.0)) is not None:  # asked while Python or the job's script started
                return code
            nodes = self.placing.choose(self.allocation.present())
            if not nodes:
                return self._requeue(f"too few nodes are left for {self.submission.cluster.nodes}")
            before = self.disk.do(lambda: Before.of(self.run_folder))
            attempt = self._attempt(nodes, before)
            self.attempts.append(attempt)
            code = self._after(attempt)
            if code is not None:
                return code

    def _is_over(self, notes: Sequence[Note]) -> int | None:
        """Return the exit code where this job has nothing to do; say why. notes: of all jobs so far."""
        if ending := self.disk.do(lambda: records.ending(self.folder)):
            self.journal.say(f"this submission is over, by job {ending.job}: {ending.reason}")
            return ending.code
        if self.disk.do(lambda: records.is_cancelled(self.folder)):
            return self._end(STOPPED, "cancelled before it started", kind="stop")
        saved = self.disk.do(lambda: newest_saved(self.run_folder))
        if why := fruitless(notes, saved):
            return self._end(FAILED, why, kind="stop")
        return None

    def _attempt(self, nodes: tuple[str, ...], before: Before) -> Attempt:
        """Start the ranks on `nodes`; return how they ended."""
        self.starts += 1
        cluster = self.submission.cluster
        where = Placement(nodes, cluster.nproc, allocated_cpus(self.submission, self.environ))
        self._note(
            "start",
            f"{where.world} rank{'s' * (where.world > 1)} on {' '.join(nodes)}",
            step=before.saved,
            nodes=list(nodes),
        )
        more, words = rank_words(self.submission)
        output = StepOutput(where.world, self.journal.new_log(where, self.starts))
        try:
            end = run_step(
                srun(where, more, words),
                rank_environment(self.submission, self.environ),
                where,
                output,
                self.signals,
            )
        finally:
            output.close()
        attempt = self._describe(end, where, before)
        self._note("end", in_words(attempt), code=attempt.code, step=attempt.step, nodes=list(nodes))
        return attempt

    def _describe(self, end: StepEnd, where: Placement, before: Before) -> Attempt:
        # Where a rank failed with an exit code, the ranks' own events know better than srun who was first.
        def look() -> Attempt:
            return before.attempt(
                end.code,
                asked_to_stop=end.asked_to_stop,
                rank=None if end.code > 0 else end.rank,
                host=end.host,
                host_lost=bool(end.lost),
            )

        self.disk.asked |= end.asked_to_stop
        try:
            attempt = self.disk.do(look)
        except FolderHangs:
            if not end.asked_to_stop:
                raise
            return Attempt(end.code, asked_to_stop=True, rank=end.rank, host=end.host)
        done, steps = max(attempt.step, attempt.saved_after), self.cfg.train.steps
        if attempt.code == DONE and done < steps and not ended_early(self.run_folder / EVENTS, done):
            self.journal.say(f"srun ended with 0 at step {done} of {steps}: taken for a failure")
            attempt = replace(attempt, code=FAILED)
        if end.lost or attempt.rank is None:
            return replace(attempt, rank=end.rank, host=end.host)
        # srun may tell first of a rank that failed for want of the one that was killed.
        code = -end.signals.get(attempt.rank, -attempt.code)
        return replace(attempt, code=code, host=where.host_of(attempt.rank) or attempt.host)

    def _after(self, attempt: Attempt) -> int | None:
        """Do what follows an attempt; return the job's exit code, or None to start the ranks again."""
        if attempt.has_saved:
            self.held = 0
        if attempt.code == DONE:
            return self._end(DONE, "done")
        if attempt.asked_to_stop:
            return self._asked(attempt)
        if attempt.code == STOPPED:
            return self._wait_and_start(attempt)
        decision = decide(self.attempts, restarts=self.cfg.supervise.restarts)
        if not isinstance(decision, Again):
            self.journal.decided(attempt, decision, start=self.starts)
            return self._end(decision.code, decision.reason, kind="stop")
        present = self.allocation.present()
        excluded = self.placing.exclude(attempt, present)
        if not self.placing.choose(present):
            return self._requeue(f"{attempt}, and the nodes that are left are too few", attempt)
        if excluded:
            decision = replace(decision, reason=f"{decision.reason}, without {attempt.host}")
        self.journal.decided(attempt, decision, start=self.starts)
        self._note("restart", decision.reason, step=attempt.saved_after)
        return self._wait(decision.wait_seconds)

    def _wait(self, seconds: float) -> int | None:
        if not self.signals.wait(seconds):
            return None
        self.signals.take()
        return self._asked(Attempt(STOPPED, asked_to_stop=True))

    def _wait_and_start(self, attempt: Attempt) -> int | None:
        """The ranks left with 75, and this process was not asked to stop: another job holds the run for now,
        as of a node that died, until its file server notices; or somebody has asked a rank alone; or SLURM
        has asked the ranks alone, as where the grace time of a preemption begins.
        """
        self.attempts.pop()
        now = self.allocation.state()
        if now.preempted or now.is_ending or self.allocation.is_requeued(now):
            return self._asked(attempt)
        self.held += 1
        if self.held > len(HELD_WAITS):
            return self._requeue(in_words(attempt))
        seconds = HELD_WAITS[self.held - 1]
        self._note("restart", f"{in_words(attempt)}: starting again in {seconds:g} s")
        return self._wait(seconds)

    def _asked(self, attempt: Attempt) -> int:
        """The ranks have left because they were asked to: find out who asked, and requeue or not."""
        self.disk.asked = True
        try:
            step = self.disk.do(lambda: newest_saved(self.run_folder))
            saved = f"saved at step {step}" if step else "nothing is saved"
            is_cancelled = self.disk.do(lambda: records.is_cancelled(self.folder))
        except FolderHangs as hangs:  # where somebody has cancelled the run, the next job sees that
            saved, is_cancelled = str(hangs), False
        if is_cancelled:
            return self._end(STOPPED, f"cancelled; {saved}", kind="stop")
        now = self.allocation.state()
        if self.allocation.is_requeued(now):
            return self._requeued_by_slurm(saved)
        if now.is_cancelled:
            return self._cancelled(saved)
        how = "" if attempt.code == STOPPED else f"{attempt}; "
        return self._requeue(f"{now.request()}; {how}{saved}", attempt)

    def _requeued_by_slurm(self, saved: str) -> int:
        step = self._newest_saved()
        self._note("requeue", f"SLURM has put the job back into the queue; {saved}", step=step)
        return STOPPED

    def _requeue(self, reason: str, attempt: Attempt | None = None) -> int:
        """Put the job back into the queue, where it starts again from the newest checkpoint."""
        now = self.allocation.state()
        if self.allocation.is_requeued(now):  # as at the loss of a node
            return self._requeued_by_slurm(reason)
        if now.is_cancelled:
            return self._cancelled(reason)
        if not self.submission.cluster.requeue:
            self._note("stop", f"{reason}; requeue is false: submit the run again")
            return STOPPED
        step = self._newest_saved()
        # Noted before: where SLURM takes the request, it ends this process at once.
        self._note("requeue", f"{reason}; requeued", step=step)
        if attempt is not None:
            requeued = Leave(STOPPED, f"{reason}; requeued")
            self.journal.decided(attempt, requeued, start=self.starts, kind="requeue")
        if trouble := self.allocation.put_back(self.journal.say):
            self._note("stop", trouble, step=step)
        return STOPPED

    def _cancelled(self, saved: str) -> int:
        """Somebody has called scancel: the same end as that of `germinal cancel`."""
        self.journal.cancelled()
        return self._end(STOPPED, f"cancelled by scancel; {saved}", kind="stop")

    def _end(self, code: int, reason: str, *, kind: str = "") -> int:
        """The submission is over."""
        if kind:
            self._note(kind, reason, code=code)
        else:
            self.journal.say(reason)
        self.journal.end(code, reason, self._newest_saved() or 0)
        return code

    def _newest_saved(self) -> int | None:
        """Return the step of the newest checkpoint; None where the run folder does not answer."""
        with contextlib.suppress(FolderHangs):
            return self.disk.do(lambda: newest_saved(self.run_folder))
        return None

    def _fits(self, ranks: int) -> bool:
        """Whether the run may go on with fewer ranks than it asked for: its config says so, and has a layout
        for them.
        """
        if not self.cfg.train.ranks and not self.cfg.parallel.layouts:
            return False
        try:
            checks.layout(self.cfg, ranks)
        except ValueError:
            return False
        return True

    def _note(self, kind: str, reason: str, **fields: Any) -> None:
        excluded = list(self.placing.excluded)
        self.journal.note(kind, reason, attempt=self.starts, excluded=excluded, **fields)
