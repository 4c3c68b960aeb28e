"""`germinal train`: runs the ranks of a run, and starts them again after a failure."""

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from common.exit_codes import ASKED_TO_STOP, DONE, FAILED, WRONG, of_request, request_in_words
from common.standard_error import complain
from launch.job import Job
from launch.local.ended import Ended
from launch.local.folder_work import FolderHangs, in_time
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
from trainer.folder.fence import is_held_by, is_lost
from trainer.process.notify import Notifier


def keep_running(job: Job, cfg: RunConfig) -> int:
    """Run the job's ranks to the end; return the exit code.

    After a failure they are started again, from the newest checkpoint, as `launch.supervise.policy` decides.
    Each restart, and the end of a run that failed too often, is a line and an event.
    """
    signals = SignalInbox(RECORDED)
    notifier = Notifier(cfg.supervise.notify, cfg.name, cfg.folder).begin()
    try:
        return _keep_running(job, cfg, signals, notifier)
    except FolderHangs as hangs:
        if request := signals.wait(0.0):
            return _asked_meanwhile(request, str(hangs))
        return complain(f"{hangs}: the ranks are not started again; the same command goes on", FAILED)
    finally:
        notifier.finish()
        signals.stop_waking()


def _keep_running(job: Job, cfg: RunConfig, signals: SignalInbox, notifier: Notifier) -> int:
    attempts: list[Attempt] = []
    why = ""
    while True:
        before = in_time(lambda: Before.of(cfg.folder), cfg.folder, signals)
        end, rank_0 = _run_once(job, cfg.folder, signals, _heading(len(attempts) + 1, why))
        attempts.append(_describe(end, rank_0, before, signals, kept=bool(attempts)))
        decision = _decide(attempts, end, cfg, notifier)
        if isinstance(decision, Leave):
            return end.code
        if isinstance(decision, Stop) and attempts[-1].folder_lost:
            return decision.code  # and no event: the folder is not this run's any more
        write = partial(record, cfg.folder, attempts[-1], decision, start=len(attempts))
        in_time(write, cfg.folder, signals)
        if isinstance(decision, Stop):
            return decision.code
        if request := signals.wait(decision.wait_seconds):
            why = f"{request_in_words(request)} before the next start"
            notifier.tell("end", attempts[-1].step, why, code=of_request(request))
            return _asked_meanwhile(request, _goes_on(cfg.folder, signals))
        why = decision.reason
        if in_time(lambda: is_lost(cfg.folder), cfg.folder, signals):  # while it waited
            attempts[-1] = replace(attempts[-1], folder_lost=True)
            _decide(attempts, end, cfg, notifier)
            return FAILED


def _run_once(job: Job, folder: Path, signals: SignalInbox, heading: str) -> tuple[Ended, int]:
    """Run the ranks once; return how they ended, and the process id of rank 0."""
    ids = [0]

    def new_log(rank: int, rank_0: int) -> RankLog:
        ids[0] = rank_0
        log = RankLog(folder / "logs" / f"rank-{rank:05d}.log", lambda: is_held_by(folder, rank_0))
        log.line(heading.encode())
        return log

    with meeting_socket(job.nproc) as meet_at:
        commands = rank_commands(job, environ=os.environ, meet_at=meet_at)
        end = supervise(commands, signals=signals, new_log=new_log, folder=folder)
    return end, ids[0]


def _goes_on(folder: Path, signals: SignalInbox) -> str:
    """What the same command would do, asked after a request to stop."""
    try:
        return in_time(lambda: goes_on(folder), folder, signals, asked=True)
    except FolderHangs as hangs:
        return str(hangs)


def _describe(end: Ended, rank_0: int, before: Before, signals: SignalInbox, *, kept: bool) -> Attempt:
    """Describe the attempt that has ended. kept: a start before it kept its record in the run folder."""
    code, folder = -end.signal or end.code, before.folder

    def look() -> Attempt:
        attempt = before.attempt(
            code,
            asked_to_stop=end.asked_to_stop,
            under_way=end.under_way,
            rank=end.rank,
            host=socket.gethostname(),
        )
        lost = is_lost(folder, rank_0) if end.under_way else kept and is_lost(folder)
        return replace(attempt, folder_lost=lost, step=before.saved if lost else attempt.step)

    is_over = end.asked_to_stop or code in (DONE, WRONG, *ASKED_TO_STOP)
    try:
        return in_time(look, folder, signals, asked=is_over)
    except FolderHangs:
        if not is_over:
            raise
        return Attempt(code, before.saved, before.saved, before.saved, end.asked_to_stop, end.under_way)


def _decide(attempts: Sequence[Attempt], end: Ended, cfg: RunConfig, notifier: Notifier) -> Decision:
    """Return what follows the last attempt; show it, and tell others."""
    decision, attempt = decide(attempts, restarts=cfg.supervise.restarts), attempts[-1]
    # The decision's line says how the ranks ended, so their end needs no other.
    if isinstance(decision, Again):
        show_line(decision.reason.encode())
    elif isinstance(decision, Leave):
        end.show_error()
    else:
        show_line(f"error: {decision.reason}".encode())
    about = {"rank": attempt.rank, "code": attempt.code} if attempt.code else {"code": 0}
    if isinstance(decision, Again):
        about |= {"restart": decision.number, "from_step": attempt.saved_after}
    notifier.tell("restart" if isinstance(decision, Again) else "end", attempt.step, decision.reason, **about)
    return decision


def _asked_meanwhile(request: int, after: str) -> int:
    show_line(f"error: {request_in_words(request)} before the next start: {after}".encode())
    return of_request(request)


def _heading(number: int, why: str) -> str:
    """The line in the ranks' logs with which an attempt begins."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    command = " ".join(shlex.join(["germinal", *sys.argv[1:]]).split())  # on one line
    after = f", after {why}" if why else ""
    return f"=== {now} start {number} by process {os.getpid()} on {socket.gethostname()}: {command}{after}"
