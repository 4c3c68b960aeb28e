"""What signals do to a process: leave at once while there is nothing to save, else save first.

SIGINT is Ctrl-C; SIGTERM, SIGUSR1 and SIGHUP are requests to stop. SLURM sends SIGTERM, SIGCONT, SIGTERM
within 13 ms at a time limit, and SIGUSR1 where it is told to warn; SIGHUP comes where the terminal is closed
or the ssh connection is cut. A request to stop may come any number of times. Of Ctrl-C the first saves and
the second leaves at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from common.exit_codes import INTERRUPTED, STOPPED, of_request, request_in_words
from common.standard_error import write_line

_ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ALL = (signal.SIGINT, *_ASKED)

# A terminal and a launcher may both pass the same Ctrl-C on: closer together than this, two are one.
ONE_PRESS_SECONDS = 0.5
# How long a rank that was asked to stop while it starts tries to reach the other ranks, before it leaves.
ANNOUNCE_SECONDS = 10.0

# The answer to the first Ctrl-C, in the place of a progress line.
SAVING = "stopping after this step: saving; a second Ctrl-C leaves at once without saving"
CLEAR_LINE = "\r\x1b[2K"

# Announces to the other ranks that this one leaves: exit code and reason.
Announce = Callable[[int, str], None]


class Stopped(BaseException):
    """A request to stop where something half made is removed first. `number`: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class LeaveAtOnce:
    """From `begin` on, a signal ends the process with a line and an exit code, until `end` or `save_first`.

    A KeyboardInterrupt raised while torch is imported comes out as a traceback, or as another error of
    whatever caught it halfway. Before its first step a run has written nothing that it would have to finish.

    what: what had not come yet, for the line: "asked to stop before {what}".
    lost: what follows in that line: ": nothing was under way".
    announces: this process may be one of several that wait for each other. A request to stop then waits
        for `announce_with`, for at most `ANNOUNCE_SECONDS`.
    """

    def __init__(self, what: str, *, lost: str = ": nothing was under way", announces: bool = False) -> None:
        self._what = what
        self._lost = lost
        self._before: dict[int, Any] = {}
        self._announce: Announce | None = None if announces else _alone
        self._pending = 0  # a request to stop that waits for `announce_with`
        self._request: Callable[[], None] | None = None
        self._goes_on: Callable[[], str] | None = None
        self._tells = False
        self._silent: int | None = None
        self._interrupted_at = 0.0
        self._wake = -1  # descriptor into which the system's handler writes a signal's number
        self.asked = 0  # the first signal since `save_first`

    def begin(self) -> "LeaveAtOnce":
        """Take over the signals; return this object."""
        for number in _ALL:
            if not stays_ignored(number):
                self._before[number] = signal.signal(number, self._answer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)  # see `hold`
        return self

    def listen(self) -> None:
        """From here on answer in a thread: Python runs no handler while the process waits inside torch."""
        ours, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True).start()

    def announce_with(self, announce: Announce) -> None:
        """Call `announce` before leaving, from here on; leave now if a request to stop came meanwhile."""
        self._announce = announce
        if self._pending:
            self._leave(self._pending)

    def would_lose(self, lost: str) -> None:
        """From here on a line about leaving at once ends with `lost`."""
        self._lost = lost

    def save_first(
        self, request: Callable[[], None], goes_on: Callable[[], str], *, tells: bool = False
    ) -> None:
        """From here on there is something to save: a signal calls `request`, which must be quick, and only a
        second Ctrl-C ends the process, with a line that ends with `goes_on()`.

        tells: say on standard error, at the first Ctrl-C, what comes next; on one rank.
        """
        self._request, self._goes_on, self._tells = request, goes_on, tells

    def unwind(self) -> None:
        """From here on the first signal raises `Stopped` in the main thread; the next ends the process."""

        def stop(number: int, frame: FrameType | None) -> None:
            for one in self._before:
                signal.signal(one, self._answer)
            raise Stopped(number)

        for number in self._before:
            signal.signal(number, stop)

    def leave_silently(self, code: int) -> None:
        """From here on a signal ends the process with `code` and without a line: another rank writes it."""
        self._silent = code

    def end(self) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())
        if self._wake >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._wake)
            self._wake = -1

    def _listen(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as numbers:
            while arrived := numbers.read(64):
                for number in arrived:
                    if number in self._before:
                        self._answer(number, None)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._silent is not None:
            os._exit(self._silent)
        if self._request is None:
            self._leave(number)
            return
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at and now > self._interrupted_at + ONE_PRESS_SECONDS:
                after = f": {self._goes_on()}" if self._goes_on is not None else ""
                self._go(INTERRUPTED, f"interrupted again{after}")
            if self._tells and not self._interrupted_at:
                write_line(f"{CLEAR_LINE if os.isatty(2) else ''}{SAVING}")
            self._interrupted_at = self._interrupted_at or now
        self.asked = self.asked or number
        self._request()

    def _leave(self, number: int) -> None:
        if self._announce is None and number != signal.SIGINT:
            if not self._pending:
                self._pending = number
                late = threading.Timer(ANNOUNCE_SECONDS, lambda: self._go(STOPPED, self._why(number)))
                late.daemon = True
                late.start()
            return
        self._go(of_request(number), self._why(number))

    def _why(self, number: int) -> str:
        return f"{request_in_words(number)} before {self._what}{self._lost}"

    def _go(self, code: int, why: str) -> None:
        write_line(f"error: {why}")
        if self._announce is not None:
            self._announce(code, why)
        os._exit(code)


def _alone(code: int, why: str) -> None:
    """The `Announce` of a process without other ranks."""


def stays_ignored(number: int) -> bool:
    """Whether a signal stays ignored that this process inherited as ignored.

    So do Ctrl-C and Ctrl-Z of a script's background job, and SIGHUP under nohup. Other requests to stop are
    answered all the same: a batch script that ignores them (`trap '' USR1`) means only itself, but its
    children inherit that.
    """
    mine = (signal.SIGINT, signal.SIGTSTP, signal.SIGHUP)
    return number in mine and signal.getsignal(number) == signal.SIG_IGN


def hold() -> None:
    """Keep signals back until this process, or the program that replaces it, calls `LeaveAtOnce.begin`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
