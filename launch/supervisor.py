"""Starts the ranks of one machine and watches over them.

Of several ranks this makes one program: one exit code, one error, one Ctrl-C, and nothing left behind.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from launch.job import Command

# Exit codes with which a rank leaves in agreement with the others: done, and preempted with its state saved.
AGREED = (0, 75)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A line that starts so begins a rank's last words. Every rank that follows a failed one has some; one speaks.
LAST_WORDS = (b"error: ", b"Traceback (most recent call last)")


def supervise(commands: Sequence[Command], *, grace_seconds: float = 10.0) -> int:
    """Run `commands` as the ranks of one program until all have ended; returns the program's exit code.

    Rank 0 keeps standard output, and so a live progress line. What the others print, and what any rank writes
    to standard error, comes out on standard error line by line behind `[rank N]`.

    The first rank to fail decides the exit code and its error is the one shown; the others are asked to end
    (SIGTERM) and after `grace_seconds` made to. A rank ended by a signal counts as failed (1). SIGINT,
    SIGTERM and SIGUSR1 are passed on; a second SIGINT or SIGTERM kills. If this process itself is killed, the
    kernel kills the ranks (on Linux).
    """
    supervisor = _Supervisor(grace_seconds)
    try:
        for rank, command in enumerate(commands):
            supervisor.start(rank, command)
        return supervisor.watch()
    finally:
        supervisor.close()


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    tails: dict[IO[bytes], bytes] = field(default_factory=dict)  # stream → its last line so far
    last_words: list[bytes] = field(default_factory=list)  # held back until it is known who failed first
    spoken: bool = False  # they were not last: it lives on, and they have been shown
    failed_at: float = 0.0  # when its last words began, or it ended without any


class _Supervisor:
    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.ranks: list[_Rank] = []
        self.kill_at = float("inf")
        self.arrived: list[int] = []  # signals not yet passed on
        self.asked: list[int] = []  # every SIGINT and SIGTERM
        self.selector = selectors.DefaultSelector()
        # A signal, SIGCHLD included, writes a byte here: select wakes at once, without polling.
        self.wake, self.waker = socket.socketpair()
        for end in (self.wake, self.waker):
            end.setblocking(False)
        self.selector.register(self.wake, selectors.EVENT_READ)
        self.old_wakeup = signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        handlers = dict.fromkeys(FORWARDED, lambda number, frame: self.arrived.append(number))
        handlers[signal.SIGCHLD] = lambda number, frame: None
        self.old_handlers = {number: signal.signal(number, handlers[number]) for number in handlers}

    def start(self, number: int, command: Command) -> None:
        linux = sys.platform == "linux"
        process = subprocess.Popen(
            command.argv,
            env=os.environ | command.env,
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches this process only, which passes it on once
            preexec_fn=partial(_die_with_parent, os.getpid()) if linux else None,
        )
        rank = _Rank(number, process)
        self.ranks.append(rank)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                rank.tails[stream] = b""
                self.selector.register(stream, selectors.EVENT_READ, rank)

    def watch(self) -> int:
        while any(rank.process.poll() is None for rank in self.ranks):
            self._pass_on_signals()
            self._react()
            self._read(timeout=max(0.0, min(1.0, self.kill_at - time.monotonic())))
        self._react()
        self._read(timeout=0.0)
        return self._verdict()

    def _react(self) -> None:
        """Note which ranks have failed; after the first, ask the others to end, and in time make them."""
        now = time.monotonic()
        for rank in self.ranks:
            code = rank.process.poll()
            if code is None and rank.last_words and now > rank.failed_at + self.grace_seconds:
                self._speak(rank)
                rank.spoken, rank.last_words, rank.failed_at = True, [], 0.0
            if code is None or code in AGREED:
                continue
            rank.failed_at = rank.failed_at or now
            if self.kill_at == float("inf"):
                self.kill_at = now + self.grace_seconds
                # One that has spoken is on its way out, and its exit code may be the one that counts.
                self._send(signal.SIGTERM, [rank for rank in self.ranks if not rank.last_words])
        if now >= self.kill_at:
            self._kill_all()

    def _pass_on_signals(self) -> None:
        while self.arrived:
            number = self.arrived.pop(0)
            if number != signal.SIGUSR1:
                self.asked.append(number)
            if len(self.asked) > 1:
                self._kill_all()
            else:
                self._send(number, self.ranks)

    def _read(self, timeout: float) -> None:
        for key, _ in self.selector.select(timeout):
            if key.fileobj is self.wake:
                with contextlib.suppress(BlockingIOError):
                    self.wake.recv(4096)
                continue
            stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
            while True:
                try:
                    chunk = os.read(stream.fileno(), 1 << 16)
                except BlockingIOError:
                    break
                self._lines(key.data, stream, chunk)
                if not chunk:
                    self.selector.unregister(stream)
                    break

    def _lines(self, rank: _Rank, stream: IO[bytes], chunk: bytes) -> None:
        """Pass on whole lines; an empty chunk is the end, and what is left of a line then counts as one."""
        *lines, tail = (rank.tails[stream] + chunk).split(b"\n")
        if not chunk and tail:
            lines, tail = [tail], b""
        rank.tails[stream] = tail
        for line in lines:
            begins = line.startswith(LAST_WORDS) and not rank.spoken
            if stream is rank.process.stderr and (rank.last_words or begins):
                rank.failed_at = rank.failed_at or time.monotonic()
                rank.last_words.append(line)
            else:
                _say(f"[rank {rank.number}] ".encode() + line)

    def _verdict(self) -> int:
        """The exit code of all, once each has one; says the last words of the rank that decided it."""
        failed = [rank for rank in self.ranks if rank.process.returncode not in AGREED]
        for rank in self.ranks:
            if rank not in failed:  # what it said was not its end
                self._speak(rank)
        if not failed:
            return max(rank.process.returncode for rank in self.ranks)
        first = min(failed, key=lambda rank: rank.failed_at)
        code = first.process.returncode
        if code < 0 and self.asked:
            return 128 + self.asked[-1]
        self._speak(first)
        words = first.last_words or first.spoken
        if code < 0 and not words:
            name = signal.Signals(-code).name
            hint = " (out of memory? see the kernel's log)" if -code == signal.SIGKILL else ""
            _say(f"error: rank {first.number} was ended by {name}{hint}".encode())
        elif not words:
            _say(f"error: rank {first.number} ended with exit code {code} and said nothing".encode())
        return 1 if code < 0 else code

    def _speak(self, rank: _Rank) -> None:
        for line in rank.last_words:
            _say(line if line.startswith(b"error: ") else f"[rank {rank.number}] ".encode() + line)

    def _send(self, number: int, ranks: Sequence[_Rank]) -> None:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _kill_all(self) -> None:
        """End every rank that has not left by itself, and what it started."""
        for rank in self.ranks:
            if rank.process.poll() not in AGREED:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._kill_all()
        for rank in self.ranks:
            rank.process.wait()
            for stream in rank.tails:
                stream.close()
        signal.set_wakeup_fd(self.old_wakeup)
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        self.selector.close()
        self.wake.close()
        self.waker.close()


def _say(line: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever read us has gone; the ranks must still be watched
        os.write(2, line + b"\n")


def _die_with_parent(parent: int) -> None:
    """In the child, before it becomes the rank: have the kernel kill it when `parent` dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
