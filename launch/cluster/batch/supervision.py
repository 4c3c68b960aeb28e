"""Supervises the ranks of a job: one srun step after another, until the run is done, requeued or given up."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.exit_codes import ASKED_TO_STOP, DONE, FAILED, STOPPED
from launch.cluster import submission as records
from launch.cluster.batch.allocation import Allocation, JobState
from launch.cluster.batch.journal import Journal
from launch.cluster.batch.placing import Placing
from launch.cluster.batch.rank_words import allocated_cpus, rank_environment, rank_words
from launch.cluster.batch.step import Placement, StepEnd, run_step, srun
from launch.cluster.batch.step_output import StepOutput
from launch.cluster.submission import Submission
from launch.local.signal_inbox import SignalInbox
from launch.supervise.evidence import Before, newest_saved
from launch.supervise.policy import Again, Attempt, Leave, decide
from trainer.config import checks

if TYPE_CHECKING:
    from trainer.config.run_config import RunConfig

# Jobs of one submission that may start one after the other without a new checkpoint in between.
FRUITLESS_STARTS = 5
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
    attempts: how the starts of this job ended.
    starts: how many there were.
    held: how many of them found the run held by another job.
    """

    submission: Submission
    cfg: "RunConfig"
    allocation: Allocation
    signals: SignalInbox
    environ: Mapping[str, str]
    journal: Journal
    attempts: list[Attempt] = field(default_factory=list)
    starts: int = 0
    held: int = 0

    def __post_init__(self) -> None:
        cluster = self.submission.cluster
        self.folder = Path(self.submission.folder)
        self.run_folder = Path(self.submission.run_folder)
        self.placing = Placing(cluster.nodes, lambda nodes: self._fits(nodes * cluster.nproc))
        if any(note.kind == "end" for note in records.notes(self.folder)):
            # This is no first start: what fails now has worked before, in an earlier job.
            saved = newest_saved(self.run_folder)
            self.attempts.append(Attempt(STOPPED, step=-1, saved_before=saved, saved_after=saved))

    def run(self) -> int:
        """Run the ranks until nothing is left to do in this job; return the job's exit code."""
        if (code := self._is_over()) is not None:
            return code
        while True:
            if (code := self._wait(0.0)) is not None:  # asked while Python or the job's script started
                return code
            nodes = self.placing.choose(self.allocation.present())
            if not nodes:
                return self._requeue(f"too few nodes are left for {self.submission.cluster.nodes}")
            before = Before.of(self.run_folder)
            attempt = self._attempt(nodes, before)
            self.attempts.append(attempt)
            code = self._after(attempt)
            if code is not None:
                return code

    def _is_over(self) -> int | None:
        """Return the exit code where this job has nothing to do; say why."""
        if ending := records.ending(self.folder):
            self.journal.say(f"this submission is over, by job {ending.job}: {ending.reason}")
            return ending.code
        if records.is_cancelled(self.folder):
            return self._end(STOPPED, "cancelled before it started", kind="stop")
        saved = newest_saved(self.run_folder)
        notes = records.notes(self.folder)
        # One a job: its first start of the ranks, or that it was requeued before that.
        jobs = [note for note in notes if (note.kind, note.attempt) in (("start", 1), ("requeue", 0))]
        latest = jobs[-FRUITLESS_STARTS:]
        if len(latest) == FRUITLESS_STARTS and all((note.step or 0) == saved for note in latest):
            return self._end(
                FAILED,
                f"{FRUITLESS_STARTS} jobs one after the other began at step {saved} and saved nothing: not "
                "started again; see their logs; is the time limit too short for checkpoint.every steps?",
                kind="stop",
            )
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
        self._note("end", _in_words(attempt), code=attempt.code, step=attempt.step, nodes=list(nodes))
        return attempt

    def _describe(self, end: StepEnd, where: Placement, before: Before) -> Attempt:
        # Where a rank failed with an exit code, the ranks' own events know better than srun who was first.
        attempt = before.attempt(
            end.code,
            asked_to_stop=end.asked_to_stop,
            rank=None if end.code > 0 else end.rank,
            host=end.host,
            host_lost=bool(end.lost),
        )
        if end.lost or attempt.rank is None:
            return replace(attempt, rank=end.rank, host=end.host)
        return replace(attempt, host=where.host_of(attempt.rank) or attempt.host)

    def _after(self, attempt: Attempt) -> int | None:
        """Do what follows an attempt; return the job's exit code, or None to start the ranks again."""
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
        """The ranks left with 75, and the job was not asked to stop: another job holds the run for now, as of
        a node that died, until its file server notices; or somebody has asked a rank alone.
        """
        self.attempts.pop()
        self.held += 1
        if self.held > len(HELD_WAITS):
            return self._requeue(_in_words(attempt))
        seconds = HELD_WAITS[self.held - 1]
        self._note("restart", f"{_in_words(attempt)}: starting again in {seconds:g} s")
        return self._wait(seconds)

    def _asked(self, attempt: Attempt) -> int:
        """The ranks have left because they were asked to: find out who asked, and requeue or not."""
        step = newest_saved(self.run_folder)
        saved = f"saved at step {step}" if step else "nothing is saved"
        if records.is_cancelled(self.folder):
            return self._end(STOPPED, f"cancelled; {saved}", kind="stop")
        now = self.allocation.state()
        if self._is_requeued(now):
            return self._requeued_by_slurm(saved)
        by_limit = now.reason == "TimeLimit" or now.state == "TIMEOUT"
        if now.state in ("COMPLETING", "CANCELLED") and not by_limit:
            self.journal.cancelled()  # the same end as that of `germinal cancel`
            return self._end(STOPPED, f"cancelled by scancel; {saved}", kind="stop")
        how = "" if attempt.code == STOPPED else f"{attempt}; "
        limit = "the time limit is near" if not by_limit else "the time limit is reached"
        return self._requeue(f"{limit}; {how}{saved}", attempt)

    def _is_requeued(self, now: JobState) -> bool:
        return now.restarts > self.allocation.restarts or now.state == "PENDING"

    def _requeued_by_slurm(self, saved: str) -> int:
        step = newest_saved(self.run_folder)
        self._note("requeue", f"SLURM has put the job back into the queue; {saved}", step=step)
        return STOPPED

    def _requeue(self, reason: str, attempt: Attempt | None = None) -> int:
        """Put the job back into the queue, where it starts again from the newest checkpoint."""
        if self._is_requeued(self.allocation.state()):  # as at the loss of a node
            return self._requeued_by_slurm(reason)
        if not self.submission.cluster.requeue:
            self._note("stop", f"{reason}; requeue is false: submit the run again")
            return STOPPED
        step = newest_saved(self.run_folder)
        self._note("requeue", f"{reason}; requeued", step=step)
        if attempt is not None:
            requeued = Leave(STOPPED, f"{reason}; requeued")
            self.journal.decided(attempt, requeued, start=self.starts, kind="requeue")
        if refused := self.allocation.requeue():
            self._note("stop", f"SLURM does not requeue the job: {refused}; submit the run again", step=step)
        return STOPPED

    def _end(self, code: int, reason: str, *, kind: str = "") -> int:
        """The submission is over."""
        if kind:
            self._note(kind, reason, code=code)
        else:
            self.journal.say(reason)
        self.journal.end(code, reason, newest_saved(self.run_folder))
        return code

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


def _in_words(attempt: Attempt) -> str:
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
