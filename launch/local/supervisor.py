"""Starts the ranks of one machine and watches over them.

Of several ranks this makes one program: one exit code, one error, one Ctrl-C, and nothing left behind.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Sequence

from common.exit_codes import ASKED_TO_STOP, DONE, INTERRUPTED, STOPPED
from common.standard_error import write
from launch.job import ProcessCommand
from launch.local.local_rank import LocalRank
from launch.local.rank_output import SHOW_CURSOR, say
from trainer.process.interrupts import ONE_PRESS_SECONDS

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def supervise(
    commands: Sequence[ProcessCommand], *, grace_seconds: float = 10.0, stop_seconds: float = 600.0
) -> int:
    """Run `commands` as the ranks of one program until all have ended; returns the program's exit code.

    Rank 0 keeps standard output. What the others print, and what any rank writes to standard error, comes out
    on standard error line by line behind `[rank N]`; on a terminal, rank 0 may draw its progress there.

    The first rank to fail decides the exit code and its error is the one shown; the others are asked to end
    (SIGTERM) and after `grace_seconds` made to. So it is with the first rank that was asked to stop and left
    before all were under way, which each says on the pipe whose descriptor is in GERMINAL_UNDER_WAY. A rank
    ended by a signal counts as failed (1). SIGINT, SIGTERM and SIGUSR1 are passed on, and SIGCONT with them.
    A request to stop may come any number of times; a second SIGINT kills, and so does the end of
    `stop_seconds`, in which a rank has to save and leave. If this process itself is killed, the kernel kills
    the ranks (on Linux).
    """
    supervisor = _Supervisor(grace_seconds, stop_seconds)
    try:
        for rank, command in enumerate(commands):
            supervisor.start(rank, command, marked=len(commands) > 1)
        return supervisor.watch()
    finally:
        supervisor.close()


class _Supervisor:
    def __init__(self, grace_seconds: float, stop_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.stop_seconds = stop_seconds
        self.stop_by = float("inf")
        self.silent: list[int] = []  # ranks that had not left by then
        self.ranks: list[LocalRank] = []
        self.kill_at = float("inf")
        self.arrived: list[int] = []  # signals not yet passed on
        self.asked: list[int] = []  # SIGTERM, SIGINT and a second SIGINT
        self.interrupted_at = float("inf")
        self.selector = selectors.DefaultSelector()
        # A signal, SIGCHLD included, writes a byte here: select wakes at once, without polling.
        self.wake, self.waker = socket.socketpair()
        for end in (self.wake, self.waker):
            end.setblocking(False)
        self.selector.register(self.wake, selectors.EVENT_READ)
        self.under_way, self.tell_under_way = os.pipe()
        os.set_blocking(self.under_way, False)
        self.old_wakeup = signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        handlers = dict.fromkeys(FORWARDED, lambda number, frame: self.arrived.append(number))
        handlers[signal.SIGCHLD] = lambda number, frame: None
        self.old_handlers = {number: signal.signal(number, handlers[number]) for number in handlers}

    def start(self, number: int, command: ProcessCommand, *, marked: bool) -> None:
        rank = LocalRank.start(number, command, marked=marked, tell_under_way=self.tell_under_way)
        self.ranks.append(rank)
        for descriptor in rank.descriptors:
            self.selector.register(descriptor, selectors.EVENT_READ, rank)

    def watch(self) -> int:
        while any(rank.process.poll() is None for rank in self.ranks):
            self._pass_on_signals()
            self._react()
            self._read(timeout=max(0.0, min(1.0, min(self.kill_at, self.stop_by) - time.monotonic())))
        self._react()
        self._read(timeout=0.0)
        return self._verdict()

    def _react(self) -> None:
        """Note which ranks have failed; after the first, ask the others to end, and in time make them."""
        now = time.monotonic()
        self._note_who_has_ended()
        self._hear_who_is_under_way()
        for rank in self.ranks:
            there = rank.process.returncode is None
            if there and rank.voice.last_words and now > rank.failed_at + self.grace_seconds:
                rank.voice.resume()
            if not rank.left_alone:
                continue
            if self.kill_at == float("inf"):
                self.kill_at = now + self.grace_seconds
                # One that has spoken is on its way out, and its exit code may be the one that counts.
                self._send(signal.SIGTERM, [rank for rank in self.ranks if not rank.voice.last_words])
        if now >= self.stop_by and not self.silent:
            self.silent = self._silent()
            self._kill_all()
        if now >= self.kill_at:
            self._kill_all()

    def _note_who_has_ended(self) -> None:
        for rank in self.ranks:
            if rank.process.poll() is not None:
                rank.ended_at = rank.ended_at or time.monotonic()

    def _hear_who_is_under_way(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self.under_way, 1 << 16).split():
                self.ranks[int(number)].under_way = True

    def _silent(self) -> list[int]:
        """The ranks that are still there; where some of them are stopped, those: the others wait for them."""
        there = [rank for rank in self.ranks if rank.process.poll() is None]
        stopped = [rank for rank in there if rank.is_stopped]
        return [rank.voice.number for rank in stopped or there]

    def _pass_on_signals(self) -> None:
        while self.arrived:
            number = self.arrived.pop(0)
            now = time.monotonic()
            if number == signal.SIGINT:
                if now > self.interrupted_at + ONE_PRESS_SECONDS:
                    self.asked.append(number)
                    self._kill_all()
                    continue
                self.interrupted_at = min(self.interrupted_at, now)
            if number in self.asked:
                continue
            self._send(number, self.ranks)
            self._send(signal.SIGCONT, self.ranks)  # a stopped process answers nothing
            if number != signal.SIGUSR1:
                self.asked.append(number)
                self.stop_by = min(self.stop_by, now + self.stop_seconds)

    def _read(self, timeout: float) -> None:
        ready = self.selector.select(timeout)
        self._note_who_has_ended()  # before what others say of it
        for key, _ in ready:
            if key.fileobj is self.wake:
                with contextlib.suppress(BlockingIOError):
                    self.wake.recv(4096)
                continue
            if not key.data.voice.read(key.fd):
                self.selector.unregister(key.fd)

    def _verdict(self) -> int:
        """The exit code of all, once each has one; says the last words of the rank that decided it."""
        failed = [rank for rank in self.ranks if rank.left_alone]
        spoken: list[list[bytes]] = []
        for rank in self.ranks:
            if rank not in failed and rank.voice.last_words not in spoken:  # what it said was not its end
                rank.voice.speak()
                spoken.append(rank.voice.last_words)
        if not failed:
            return max(rank.process.returncode for rank in self.ranks)
        first = min(failed, key=lambda rank: rank.failed_at)
        code = first.process.returncode
        words = first.voice.last_words or first.voice.spoken
        if code < 0 and (self.asked or (-code in FORWARDED and not first.under_way and not words)):
            return self._ended_by_the_signal(-code)
        first.voice.speak()
        if code < 0 and not words:
            name = signal.Signals(-code).name
            hint = " (out of memory? see the kernel's log)" if -code == signal.SIGKILL else ""
            say(f"error: rank {first.voice.number} was ended by {name}{hint}".encode())
        elif not words and code not in ASKED_TO_STOP:
            say(f"error: rank {first.voice.number} ended with exit code {code} and said nothing".encode())
        return 1 if code < 0 else code

    def _ended_by_the_signal(self, number: int) -> int:
        """A rank that has not yet come to answer signals is ended by one: nothing was under way. One that was
        killed because it did not end in time has lost what came after its last checkpoint.
        """
        asked = self.asked[-1] if self.asked else number
        how = "interrupted" if asked == signal.SIGINT else "asked to stop"
        if self.silent:
            ranks = ", ".join(map(str, self.silent))
            say(
                f"error: {how}, and rank {ranks} did not answer within {self.stop_seconds:g} s: killed; "
                "the same command goes on from the last checkpoint".encode()
            )
            return 1
        if number in FORWARDED and len(self.asked) < 2:
            say(f"error: {how} before the first step: nothing was under way".encode())
            return INTERRUPTED if asked == signal.SIGINT else STOPPED
        say(f"error: {how}; the same command goes on from the last checkpoint".encode())
        return 128 + asked

    def _send(self, number: int, ranks: Sequence[LocalRank]) -> None:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _kill_all(self) -> None:
        """End every rank that has not left by itself, and what it started."""
        for rank in self.ranks:
            if rank.process.poll() not in (DONE, *ASKED_TO_STOP):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._kill_all()
        for rank in self.ranks:
            rank.process.wait()
            for descriptor in rank.descriptors:
                os.close(descriptor)
            if rank.voice.live >= 0:  # killed while it drew, it could not show the cursor again
                write(SHOW_CURSOR)
        signal.set_wakeup_fd(self.old_wakeup)
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        self.selector.close()
        self.wake.close()
        self.waker.close()
        os.close(self.under_way)
        os.close(self.tell_under_way)
