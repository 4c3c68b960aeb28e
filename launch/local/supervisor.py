"""Starts the ranks of one machine and supervises them until all have ended.

Several ranks become one program: one exit code, one error, one Ctrl-C, and no process left behind.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.exit_codes import ASKED_TO_STOP, DONE
from common.standard_error import write
from launch.job import ProcessCommand
from launch.local.ended import STOPS, Ended, StopRequests, ended
from launch.local.local_rank import LocalRank
from launch.local.rank_log import RankLog
from launch.local.rank_output import SHOW_CURSOR
from launch.local.signal_inbox import NO_REQUESTS, SignalInbox
from trainer.process.interrupts import ONE_PRESS_SECONDS

RECORDED = (*STOPS, *NO_REQUESTS)
NEVER = float("inf")


def supervise(
    commands: Sequence[ProcessCommand],
    *,
    first_rank: int = 0,
    grace_seconds: float = 10.0,
    stop_seconds: float = 600.0,
    signals: SignalInbox | None = None,
    new_log: Callable[[int, int], RankLog] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run `commands` as the ranks of one program until all have ended; return how they ended.

    first_rank: the number of the first of them; they are numbered one after another.
    grace_seconds: between SIGTERM and SIGKILL for the ranks that are left after a failure.
    stop_seconds: in which a rank that was asked to stop has to save and leave.
    signals: records the signals to this process; None: from here to the end only.
    new_log: (rank, process id of rank 0) → the log that keeps the rank's lines; None: no logs.
    folder: of the run, for a line on what the same command does after a kill; None: nothing is said of it.

    Output: rank 0 keeps standard output. What the others print, and what any rank writes to standard error,
    comes out on standard error line by line behind `[rank N]`; on a terminal, rank 0 may draw its progress
    there.

    Failure: the first rank to fail decides the exit code, and only its error is shown. The others get
    SIGTERM, and SIGKILL after `grace_seconds`. A rank that was asked to stop and left before all were under
    way ends the others likewise. (A rank is under way when it has written its number on the pipe whose
    descriptor is in GERMINAL_UNDER_WAY.) A rank that a signal ended counts as failed (1).

    Signals: SIGINT, SIGTERM, SIGHUP and SIGUSR1 are passed on, and SIGCONT with them. A request to stop may
    come any number of times. A second SIGINT kills all ranks, and so does the end of `stop_seconds`. SIGTSTP
    (Ctrl-Z) stops the ranks and this process, until SIGCONT; a terminal's new size (SIGWINCH) is passed on.
    If this process itself is killed, the kernel kills the ranks (on Linux).
    """
    inbox = signals or SignalInbox(RECORDED)
    supervisor = _Supervisor(grace_seconds, stop_seconds, inbox)
    try:
        for rank, command in enumerate(commands, first_rank):
            supervisor.start(rank, command, prefixed=len(commands) > 1)
            if new_log is not None:
                supervisor.keep_log(rank, new_log)
        supervisor.watch()
        end = ended(supervisor.ranks, supervisor.stops, folder)
    finally:
        supervisor.close()
        if signals is None:
            inbox.close()
    return end


class _Supervisor:
    """State of `supervise`; times are `time.monotonic`.

    ranks: in rank order.
    stops: the requests to stop.
    interrupted_at: when the first SIGINT came.
    stop_by: when ranks that were asked to stop are killed.
    kill_at: when the ranks that are left after a failure are killed.
    """

    def __init__(self, grace_seconds: float, stop_seconds: float, signals: SignalInbox) -> None:
        self.grace_seconds = grace_seconds
        self.ranks: list[LocalRank] = []
        self.stops = StopRequests(stop_seconds)
        self.interrupted_at = NEVER
        self.stop_by = NEVER
        self.kill_at = NEVER
        self.signals = signals
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.signals.wakeup, selectors.EVENT_READ)
        self.under_way_reader, self.under_way_writer = os.pipe()
        os.set_blocking(self.under_way_reader, False)

    def start(self, number: int, command: ProcessCommand, *, prefixed: bool) -> None:
        rank = LocalRank.start(number, command, prefixed=prefixed, under_way_pipe=self.under_way_writer)
        self.ranks.append(rank)
        for descriptor in rank.descriptors:
            self.selector.register(descriptor, selectors.EVENT_READ, rank)

    def keep_log(self, number: int, new_log: Callable[[int, int], RankLog]) -> None:
        self.ranks[-1].output.log = new_log(number, self.ranks[0].process.pid)

    def watch(self) -> None:
        """Supervise until every rank has ended."""
        while any(rank.is_running for rank in self.ranks):
            self._pass_on_signals()
            self._react()
            until_kill = min(self.kill_at, self.stop_by) - time.monotonic()
            self._read_output(timeout=max(0.0, min(1.0, until_kill)))
        self._pass_on_signals()  # that came last: a run that was asked to stop is not started again
        self._react()
        self._read_output(timeout=0.0)

    def _pass_on_signals(self) -> None:
        for number in self.signals.take():
            now = time.monotonic()
            if number == signal.SIGTSTP:
                self._stand_still()
                continue
            if number == signal.SIGWINCH:
                for rank in self.ranks:
                    rank.output.fit_terminal()
                continue
            if number == signal.SIGINT:
                if now > self.interrupted_at + ONE_PRESS_SECONDS:
                    self.stops.arrived.append(number)
                    self._kill_all()
                    continue
                self.interrupted_at = min(self.interrupted_at, now)
            if number in self.stops.arrived:
                continue
            self._send(number, self.ranks)
            self._send(signal.SIGCONT, self.ranks)  # a stopped process handles no signal
            self.stop_by = min(self.stop_by, now + self.stops.stop_seconds)
            if number == signal.SIGUSR1:
                self.stops.warned = True
            else:
                self.stops.arrived.append(number)

    def _stand_still(self) -> None:
        """Stop the ranks and this process, as Ctrl-Z does to a program of one process, until SIGCONT."""
        self._send(signal.SIGSTOP, self.ranks)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT, self.ranks)

    def _react(self) -> None:
        """Send SIGTERM to the others after the first failure; kill what is left when its time is over."""
        now = time.monotonic()
        self._note_ended()
        self._note_under_way()
        for rank in self.ranks:
            if rank.output.log is not None:
                rank.output.log.flush()
            is_running = rank.process.returncode is None
            if is_running and rank.output.held_back and now > rank.failed_at + self.grace_seconds:
                rank.output.stop_holding_back()
            if rank.failed and self.kill_at == NEVER:
                self.kill_at = now + self.grace_seconds
                # A rank that has printed an error is about to end, and its exit code may be what counts.
                self._send(signal.SIGTERM, [rank for rank in self.ranks if not rank.output.held_back])
        if now >= self.stop_by and not self.stops.unresponsive:
            self.stops.unresponsive = self._unresponsive()
            self._kill_all()
        if now >= self.kill_at:
            self._kill_all()

    def _note_ended(self) -> None:
        for rank in self.ranks:
            if not rank.is_running:
                rank.ended_at = rank.ended_at or time.monotonic()

    def _note_under_way(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = {int(word) for word in os.read(self.under_way_reader, 1 << 16).split()}
            for rank in self.ranks:
                rank.under_way |= rank.number in numbers

    def _unresponsive(self) -> list[int]:
        """The ranks that still run; where some of them are stopped, those: the others wait for them."""
        running = [rank for rank in self.ranks if rank.is_running]
        stopped = [rank for rank in running if rank.is_stopped]
        return [rank.number for rank in stopped or running]

    def _read_output(self, timeout: float) -> None:
        ready = self.selector.select(timeout)
        # Before output is read, so that a killed rank's end is dated earlier than the errors that it causes
        # on others.
        self._note_ended()
        for key, _ in ready:
            if key.fileobj is self.signals.wakeup:
                self.signals.clear_wakeup()
            elif not key.data.output.read(key.fd):
                self.selector.unregister(key.fd)

    def _send(self, number: int, ranks: Sequence[LocalRank]) -> None:
        for rank in ranks:
            if rank.is_running:
                rank.process.send_signal(number)

    def _kill_all(self) -> None:
        """Kill the process group of every rank that runs or failed; not of one that ended with DONE or
        ASKED_TO_STOP.
        """
        for rank in self.ranks:
            if rank.process.poll() not in (DONE, *ASKED_TO_STOP):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left, and release descriptors and signal handlers."""
        self._kill_all()
        for rank in self.ranks:
            rank.process.wait()
            rank.output.close()
            for descriptor in rank.descriptors:
                os.close(descriptor)
            if rank.output.terminal >= 0:  # killed while it drew, it could not show the cursor again
                write(SHOW_CURSOR)
        self.selector.close()
        os.close(self.under_way_reader)
        os.close(self.under_way_writer)
