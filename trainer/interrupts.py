"""Leaving before there is anything to save: one line and an exit code, wherever the start has come to."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED, STOPPED = 130, 75
_ASKED = (signal.SIGTERM, signal.SIGUSR1)


class LeaveAtOnce:
    """From `begin` on, Ctrl-C ends the process with a line, and so does a request to stop until `end`.

    A KeyboardInterrupt raised while torch is imported comes out as a traceback, or as another error of
    whatever caught it halfway. At the start a run has written nothing that it would have to finish.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._before: dict[int, Any] = {}

    def begin(self) -> "LeaveAtOnce":
        for number in (signal.SIGINT, *_ASKED):
            self._before[number] = signal.signal(number, self._leave)
        return self

    def end(self, *numbers: int) -> None:
        """Give back `numbers`, or every signal."""
        for number in numbers or tuple(self._before):
            if number in self._before:
                signal.signal(number, self._before.pop(number))

    @contextmanager
    def without_a_word(self) -> Iterator[None]:
        """The kernel ends the process; the launcher, where there is one, says so."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        yield
        for number in self._before:
            signal.signal(number, self._leave)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        interrupted = number == signal.SIGINT
        why = "interrupted" if interrupted else "asked to stop"
        os.write(2, f"error: {why} before {self._what}; the same command starts again\n".encode())
        os._exit(INTERRUPTED if interrupted else STOPPED)
