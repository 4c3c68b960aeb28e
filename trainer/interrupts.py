"""Leaving before there is anything to save: one line and an exit code, wherever the start has come to."""

import os
import signal
from types import FrameType
from typing import Any

INTERRUPTED, STOPPED = 130, 75
_ASKED = (signal.SIGTERM, signal.SIGUSR1)
_ALL = (signal.SIGINT, *_ASKED)


class LeaveAtOnce:
    """From `begin` on, Ctrl-C ends the process with a line, and so does a request to stop until `end`.

    A KeyboardInterrupt raised while torch is imported comes out as a traceback, or as another error of
    whatever caught it halfway. At the start a run has written nothing that it would have to finish.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._before: dict[int, Any] = {}

    def begin(self) -> "LeaveAtOnce":
        for number in _ALL:
            if signal.getsignal(number) != signal.SIG_IGN:  # as in a script's background job
                self._before[number] = signal.signal(number, self._leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)  # see `hold`
        return self

    def end(self, *numbers: int) -> None:
        """Give back `numbers`, or every signal."""
        for number in numbers or tuple(self._before):
            if number in self._before:
                signal.signal(number, self._before.pop(number))

    def without_a_word(self) -> None:
        """From here on the kernel ends the process: while ranks wait for each other inside torch, no handler
        of ours is run. The launcher, where there is one, says so.
        """
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def in_words(self) -> None:
        """`without_a_word` is over."""
        for number in self._before:
            signal.signal(number, self._leave)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        interrupted = number == signal.SIGINT
        why = "interrupted" if interrupted else "asked to stop"
        os.write(2, f"error: {why} before {self._what}: nothing was under way\n".encode())
        os._exit(INTERRUPTED if interrupted else STOPPED)


def hold() -> None:
    """Keep signals back until this process, or the program that replaces it, calls `LeaveAtOnce.begin`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
