"""What a rank says, as the user sees it: lines behind its number, a live progress line, one error of many."""

import os
import termios
import time

from common.standard_error import write

# A line that starts so begins a rank's last words. Every rank that follows a failed one has some; one speaks.
LAST_WORDS = (b"error: ", b"Traceback (most recent call last)")
CLEAR_LINE = b"\r\x1b[2K"
SHOW_CURSOR = b"\x1b[?25h"


class Voice:
    """Passes on what one rank writes, but holds its last words back until it is known who failed first."""

    def __init__(self, number: int, *, marked: bool) -> None:
        self.number = number
        self.marked = marked  # whether `[rank N]` stands before its lines
        self.last_words: list[bytes] = []
        self.began_at = 0.0  # when its last words began
        self.spoken = False  # they were not its last: they have been shown, and it goes on
        self.errors = -1  # descriptor of its standard error
        self.live = -1  # the same, where that is a terminal: it may draw a progress line
        self._tails: dict[int, bytes] = {}

    def read(self, descriptor: int) -> bool:
        """Pass on all that has come; False at its end."""
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

    def speak(self) -> None:
        """Show the last words."""
        for line in self.last_words:
            say(line if line.startswith(b"error: ") else self._marked(line))

    def resume(self) -> None:
        """It said something like an error and lived on: show it, and hold nothing back from now on."""
        self.speak()
        self.spoken, self.last_words, self.began_at = True, [], 0.0

    def _pass_on(self, descriptor: int, chunk: bytes) -> None:
        *lines, tail = (self._tails.get(descriptor, b"") + chunk).split(b"\n")
        if not chunk and tail:  # the end: what is left of a line counts as one
            lines, tail = [tail], b""
        for line in lines:
            begins = line.startswith(LAST_WORDS) and not self.spoken
            if descriptor == self.errors and (self.last_words or begins):
                self.began_at = self.began_at or time.monotonic()
                self.last_words.append(line)
            elif descriptor == self.live:
                write(line + b"\n")
            else:
                say(self._marked(line))
        # A progress line has no end to wait for; what may become last words has.
        may_be_last = any(words.startswith(tail[: len(words)]) for words in LAST_WORDS)
        if descriptor == self.live and not self.last_words and not may_be_last:
            write(tail)
            tail = b""
        self._tails[descriptor] = tail

    def _marked(self, line: bytes) -> bytes:
        return f"[rank {self.number}] ".encode() + line if self.marked else line


def terminal_like_ours() -> tuple[int, int]:
    """(our end, the rank's end) of a new terminal as wide as ours, which hands bytes on as they are."""
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(2))
    return ours, theirs


def say(line: bytes) -> None:
    """One line on standard error; on a terminal, in the place of a progress line that may be there."""
    write((CLEAR_LINE if os.isatty(2) else b"") + line + b"\n")
