"""Starts the ranks of one machine and supervises them.

Several ranks become one program: one exit code, one error, one Ctrl-C, and no process left behind.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Sequence

from common.exit_codes import ASKED_TO_STOP, DONE, FAILED, INTERRUPTED, STOPPED
from common.standard_error import write
from launch.job import ProcessCommand
from launch.local.local_rank import LocalRank
from launch.local.rank_output import SHOW_CURSOR, show_line
from launch.local.signal_inbox import SignalInbox
from trainer.process.interrupts import ONE_PRESS_SECONDS

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NEVER = float("inf")


def supervise(
    commands: Sequence[ProcessCommand], *, grace_seconds: float = 10.0, stop_seconds: float = 600.0
) -> int:
    """Run `commands` as the ranks of one program until all have ended; return the program's exit code.

    Output: rank 0 keeps standard output. What the others print, and what any rank writes to standard error,
    comes out on standard error line by line behind `[rank N]`; on a terminal, rank 0 may draw its progress
    there.

    Failure: the first rank to fail decides the exit code, and only its error is shown. The others get
    SIGTERM, and SIGKILL after `grace_seconds`. A rank that was asked to stop and left before all were under
    way ends the others likewise. (A rank is under way when it has written its number on the pipe whose
    descriptor is in GERMINAL_UNDER_WAY.) A rank that a signal ended counts as failed (1).

    Signals: SIGINT, SIGTERM and SIGUSR1 are passed on, and SIGCONT with them. A request to stop may come any
    number of times. A second SIGINT kills all ranks, and so does the end of `stop_seconds`, in which a rank
    has to save and leave. If this process itself is killed, the kernel kills the ranks (on Linux).
    """
    supervisor = _Supervisor(grace_seconds, stop_seconds)
    try:
        for rank, command in enumerate(commands):
            supervisor.start(rank, command, prefixed=len(commands) > 1)
        return supervisor.watch()
    finally:
        supervisor.close()


class _Supervisor:
    """State of `supervise`; times are `time.monotonic`.

    ranks: in rank order.
    stop_requests: SIGTERM, SIGINT and a second SIGINT, in the order in which they came first.
    interrupted_at: when the first SIGINT came.
    stop_by: when ranks that were asked to stop are killed.
    kill_at: when the ranks that are left after a failure are killed.
    unresponsive: the ranks that were killed because they had not left by `stop_by`.
    """

    def __init__(self, grace_seconds: float, stop_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.stop_seconds = stop_seconds
        self.ranks: list[LocalRank] = []
        self.stop_requests: list[int] = []
        self.interrupted_at = NEVER
        self.stop_by = NEVER
        self.kill_at = NEVER
        self.unresponsive: list[int] = []
        self.signals = SignalInbox(FORWARDED)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.signals.wakeup, selectors.EVENT_READ)
        self.under_way_reader, self.under_way_writer = os.pipe()
        os.set_blocking(self.under_way_reader, False)

    def start(self, number: int, command: ProcessCommand, *, prefixed: bool) -> None:
        rank = LocalRank.start(number, command, prefixed=prefixed, under_way_pipe=self.under_way_writer)
        self.ranks.append(rank)
        for descriptor in rank.descriptors:
            self.selector.register(descriptor, selectors.EVENT_READ, rank)

    def watch(self) -> int:
        """Supervise until every rank has ended; return the exit code."""
        while any(rank.is_running for rank in self.ranks):
            self._pass_on_signals()
            self._react()
            until_kill = min(self.kill_at, self.stop_by) - time.monotonic()
            self._read_output(timeout=max(0.0, min(1.0, until_kill)))
        self._react()
        self._read_output(timeout=0.0)
        return self._conclude()

    def _pass_on_signals(self) -> None:
        for number in self.signals.take():
            now = time.monotonic()
            if number == signal.SIGINT:
                if now > self.interrupted_at + ONE_PRESS_SECONDS:
                    self.stop_requests.append(number)
                    self._kill_all()
                    continue
                self.interrupted_at = min(self.interrupted_at, now)
            if number in self.stop_requests:
                continue
            self._send(number, self.ranks)
            self._send(signal.SIGCONT, self.ranks)  # a stopped process handles no signal
            if number != signal.SIGUSR1:
                self.stop_requests.append(number)
                self.stop_by = min(self.stop_by, now + self.stop_seconds)

    def _react(self) -> None:
        """Send SIGTERM to the others after the first failure; kill what is left when its time is over."""
        now = time.monotonic()
        self._note_ended()
        self._note_under_way()
        for rank in self.ranks:
            is_running = rank.process.returncode is None
            if is_running and rank.output.held_back and now > rank.failed_at + self.grace_seconds:
                rank.output.stop_holding_back()
            if rank.failed and self.kill_at == NEVER:
                self.kill_at = now + self.grace_seconds
                # A rank that has printed an error is about to end, and its exit code may be what counts.
                self._send(signal.SIGTERM, [rank for rank in self.ranks if not rank.output.held_back])
        if now >= self.stop_by and not self.unresponsive:
            self.unresponsive = self._unresponsive()
            self._kill_all()
        if now >= self.kill_at:
            self._kill_all()

    def _note_ended(self) -> None:
        for rank in self.ranks:
            if not rank.is_running:
                rank.ended_at = rank.ended_at or time.monotonic()

    def _note_under_way(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self.under_way_reader, 1 << 16).split():
                self.ranks[int(number)].under_way = True

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

    def _conclude(self) -> int:
        """After all have ended, show the error of the first rank to fail; return the program's exit code."""
        failed = [rank for rank in self.ranks if rank.failed]
        self._show_errors_of_survivors(failed)
        if not failed:
            return max(rank.process.returncode for rank in self.ranks)
        first = min(failed, key=lambda rank: rank.failed_at)
        code = first.process.returncode
        has_error = bool(first.output.held_back or first.output.showed_error)
        ended_early = -code in FORWARDED and not first.under_way and not has_error
        if code < 0 and (self.stop_requests or ended_early):
            return self._ended_by_signal(-code)
        first.output.show_held_back()
        if code < 0 and not has_error:
            name = signal.Signals(-code).name
            hint = " (out of memory? see the kernel's log)" if -code == signal.SIGKILL else ""
            show_line(f"error: rank {first.number} was ended by {name}{hint}".encode())
        elif not has_error and code not in ASKED_TO_STOP:
            show_line(f"error: rank {first.number} ended with exit code {code} and said nothing".encode())
        return FAILED if code < 0 else code

    def _show_errors_of_survivors(self, failed: Sequence[LocalRank]) -> None:
        """Show what ranks that did not fail had held back, the same lines once."""
        shown: list[list[bytes]] = []
        for rank in self.ranks:
            if rank not in failed and rank.output.held_back not in shown:
                rank.output.show_held_back()
                shown.append(rank.output.held_back)

    def _ended_by_signal(self, number: int) -> int:
        """Say how the signal `number` ended the first rank; return the program's exit code.

        A rank that does not handle signals yet is ended by one: there was nothing to save. A rank that was
        killed because it did not end in time has lost what came after its last checkpoint.
        """
        request = self.stop_requests[-1] if self.stop_requests else number
        how = "interrupted" if request == signal.SIGINT else "asked to stop"
        if self.unresponsive:
            ranks = ", ".join(map(str, self.unresponsive))
            show_line(
                f"error: {how}, and rank {ranks} did not answer within {self.stop_seconds:g} s: killed; "
                "the same command goes on from the last checkpoint".encode()
            )
            return FAILED
        if number in FORWARDED and len(self.stop_requests) < 2:
            show_line(f"error: {how} before the first step: nothing was under way".encode())
            return INTERRUPTED if request == signal.SIGINT else STOPPED
        show_line(f"error: {how}; the same command goes on from the last checkpoint".encode())
        return 128 + request

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
            for descriptor in rank.descriptors:
                os.close(descriptor)
            if rank.output.terminal >= 0:  # killed while it drew, it could not show the cursor again
                write(SHOW_CURSOR)
        self.selector.close()
        self.signals.close()
        os.close(self.under_way_reader)
        os.close(self.under_way_writer)
