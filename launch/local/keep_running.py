"""`germinal train`: runs the ranks of a run, and starts them again after a failure."""

import os
import shlex
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from common.exit_codes import INTERRUPTED, STOPPED
from launch.job import Job
from launch.local.ended import Ended
from launch.local.meeting_socket import meeting_socket
from launch.local.rank_commands import rank_commands
from launch.local.rank_log import RankLog
from launch.local.rank_output import show_line
from launch.local.signal_inbox import SignalInbox
from launch.local.supervisor import RECORDED, supervise
from launch.supervise.evidence import Before
from launch.supervise.policy import Again, Attempt, Decision, Leave, Stop, decide
from launch.supervise.record import record
from trainer.checkpoint.folder import goes_on
from trainer.config.run_config import RunConfig
from trainer.folder.fence import is_held_by
from trainer.process.notify import Notifier


def keep_running(job: Job, cfg: RunConfig) -> int:
    """Run the job's ranks to the end; return the exit code.

    After a failure they are started again, from the newest checkpoint, as `launch.supervise.policy` decides.
    Each restart, and the end of a run that failed too often, is a line and an event.
    """
    signals = SignalInbox(RECORDED)
    attempts: list[Attempt] = []
    why = ""
    notifier = Notifier(cfg.supervise.notify, cfg.name, cfg.folder).begin()
    try:
        while True:
            before = Before.of(cfg.folder)
            end = _run_once(job, cfg.folder, signals, _heading(len(attempts) + 1, why))
            attempts.append(_describe(end, before))
            decision = decide(attempts, restarts=cfg.supervise.restarts)
            _tell(decision, end)
            _notify(notifier, decision, attempts[-1])
            if isinstance(decision, Leave):
                return end.code
            record(cfg.folder, attempts[-1], decision, start=len(attempts))
            if isinstance(decision, Stop):
                return decision.code
            if request := signals.wait(decision.wait_seconds):
                notifier.tell("end", attempts[-1].step, "asked to stop before the next start", code=STOPPED)
                return _asked_meanwhile(request, cfg.folder)
            why = decision.reason
    finally:
        notifier.finish()
        signals.stop_waking()


def _run_once(job: Job, folder: Path, signals: SignalInbox, heading: str) -> Ended:
    def new_log(rank: int, rank_0: int) -> RankLog:
        log = RankLog(folder / "logs" / f"rank-{rank:05d}.log", lambda: is_held_by(folder, rank_0))
        log.line(heading.encode())
        return log

    with meeting_socket(job.nproc) as meet_at:
        commands = rank_commands(job, environ=os.environ, meet_at=meet_at)
        return supervise(commands, signals=signals, new_log=new_log, folder=folder)


def _describe(end: Ended, before: Before) -> Attempt:
    return before.attempt(
        -end.signal or end.code,
        asked_to_stop=end.asked_to_stop,
        under_way=end.under_way,
        rank=end.rank,
        host=socket.gethostname(),
    )


def _tell(decision: Decision, end: Ended) -> None:
    """Show what follows. The decision's line says how the ranks ended, so their end needs no other."""
    if isinstance(decision, Again):
        show_line(decision.reason.encode())
    elif isinstance(decision, Leave):
        end.show_error()
    else:
        show_line(f"error: {decision.reason}".encode())


def _notify(notifier: Notifier, decision: Decision, attempt: Attempt) -> None:
    about = {"rank": attempt.rank, "code": attempt.code} if attempt.code else {"code": 0}
    if isinstance(decision, Again):
        about |= {"restart": decision.number, "from_step": attempt.saved_after}
    notifier.tell("restart" if isinstance(decision, Again) else "end", attempt.step, decision.reason, **about)


def _asked_meanwhile(request: int, folder: Path) -> int:
    how = "interrupted" if request == signal.SIGINT else "asked to stop"
    show_line(f"error: {how} before the next start: {goes_on(folder)}".encode())
    return INTERRUPTED if request == signal.SIGINT else STOPPED


def _heading(number: int, why: str) -> str:
    """The line in the ranks' logs with which an attempt begins."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    command = " ".join(shlex.join(["germinal", *sys.argv[1:]]).split())  # on one line
    after = f", after {why}" if why else ""
    return f"=== {now} start {number} by process {os.getpid()} on {socket.gethostname()}: {command}{after}"
