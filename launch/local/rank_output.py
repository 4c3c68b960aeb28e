"""What a rank prints, as the user sees it: prefixed lines, a live progress line, one error of many."""

import contextlib
import os
import termios
import time

from common.standard_error import write
from launch.local.rank_log import RankLog

# A line that starts so may begin a rank's final error. Every rank that fails after another has an error too;
# only that of the first rank to fail is shown.
ERROR_BEGINNINGS = (b"error: ", b"Traceback (most recent call last)")
CLEAR_LINE = b"\r\x1b[2K"
LINE_BYTES = 1 << 16  # a line without an end is passed on in parts of this size
SHOW_CURSOR = b"\x1b[?25h"


class RankOutput:
    """Passes on what one rank prints, but holds its error back until it is known which rank failed first.

    number: the rank.
    prefixed: whether `[rank N]` stands before the rank's lines.
    errors: descriptor of the rank's standard error.
    terminal: the same descriptor where it is a terminal, on which the rank may draw a progress line; else -1.
    log: keeps every line in a file besides; None: nowhere.
    held_back: lines from the beginning of an error on, not shown yet.
    held_since: when the first of them came (`time.monotonic`); 0.0 where there is none.
    showed_error: an error was shown that was not the rank's end, and nothing is held back any more.
    """

    def __init__(self, number: int, *, prefixed: bool, errors: int, terminal: int) -> None:
        self.number = number
        self.prefixed = prefixed
        self.errors = errors
        self.terminal = terminal
        self.log: RankLog | None = None
        self.held_back: list[bytes] = []
        self.held_since = 0.0
        self.showed_error = False
        self._tails: dict[int, bytes] = {}  # descriptor → the begun line that has no end yet

    def read(self, descriptor: int) -> bool:
        """Pass on all that has come on a non-blocking descriptor; return False at the end of the output."""
        while True:
            try:
                chunk = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return True
            except OSError:  # a terminal whose other side is closed
                chunk = b""
            self._pass_on(descriptor, chunk)
            if not chunk:
                return False

    def show_held_back(self) -> None:
        """Show the lines that are held back."""
        for line in self.held_back:
            show_line(line if line.startswith(b"error: ") else self._prefix(line))

    def stop_holding_back(self) -> None:
        """Show the lines that are held back, and each later line as it comes: the rank runs on."""
        self.show_held_back()
        self.showed_error, self.held_back, self.held_since = True, [], 0.0

    def fit_terminal(self) -> None:
        """Make the rank's terminal, if it has one, as wide as this process's."""
        if self.terminal >= 0:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetwinsize(self.terminal, termios.tcgetwinsize(2))

    def close(self) -> None:
        """No more output comes: close the log."""
        if self.log is not None:
            self.log.close()

    def _pass_on(self, descriptor: int, chunk: bytes) -> None:
        *lines, tail = (self._tails.get(descriptor, b"") + chunk).split(b"\n")
        if descriptor != self.terminal:  # a progress bar overwrites its line and never ends it
            tail = tail[tail.rfind(b"\r", 0, -1) + 1 :]
        if tail and (not chunk or len(tail) > LINE_BYTES):
            lines, tail = [*lines, tail], b""
        for line in lines:
            if self.log is not None:
                self.log.line(line)
            begins_error = line.startswith(ERROR_BEGINNINGS) and not self.showed_error
            if descriptor == self.errors and (self.held_back or begins_error):
                self.held_since = self.held_since or time.monotonic()
                self.held_back.append(line)
            elif descriptor == self.terminal:
                write(line + b"\n")
            else:
                show_line(self._prefix(line))
        # A progress line has no end to wait for; the beginning of an error has.
        may_be_error = any(beginning.startswith(tail[: len(beginning)]) for beginning in ERROR_BEGINNINGS)
        if descriptor == self.terminal and not self.held_back and not may_be_error:
            write(tail)
            tail = b""
        self._tails[descriptor] = tail

    def _prefix(self, line: bytes) -> bytes:
        return f"[rank {self.number}] ".encode() + line if self.prefixed else line


def open_terminal() -> tuple[int, int]:
    """Open a terminal as wide as this process's, which passes bytes on unchanged: (our end, the rank's)."""
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(2))
    return ours, theirs


def show_line(line: bytes) -> None:
    """Write one line to standard error; on a terminal, in the place of a progress line that may be there."""
    write((CLEAR_LINE if os.isatty(2) else b"") + line + b"\n")
