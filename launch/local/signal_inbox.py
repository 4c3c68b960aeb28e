"""Signals that arrive at the supervisor: recorded for its loop, which they wake."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterable

from trainer.process.interrupts import stays_ignored

NO_REQUESTS = (signal.SIGTSTP, signal.SIGWINCH)  # the signals that ask for no end


class SignalInbox:
    """Records signals instead of acting on them, until `close`.

    `wakeup` becomes readable with every signal, SIGCHLD included, so that a select wakes at once and need
    not poll.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._arrived: list[int] = []
        self.wakeup, self._write_end = socket.socketpair()
        for end in (self.wakeup, self._write_end):
            end.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        taken = [number for number in numbers if not stays_ignored(number)]
        handlers = dict.fromkeys(taken, lambda number, frame: self._arrived.append(number))
        handlers[signal.SIGCHLD] = lambda number, frame: None
        self._old_handlers = {number: signal.signal(number, handlers[number]) for number in handlers}

    def wait(self, seconds: float) -> int:
        """Return the first request to stop that arrives within `seconds`, and keep it for `take`; 0 without
        one.

        Ctrl-Z stops this process until SIGCONT. While no rank runs, a new terminal size needs no action.
        Neither ends the wait.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self._arrived and self._arrived[0] in NO_REQUESTS:
                if self._arrived.pop(0) == signal.SIGTSTP:
                    os.kill(os.getpid(), signal.SIGSTOP)
            left = deadline - time.monotonic()
            if self._arrived or left <= 0:
                return self._arrived[0] if self._arrived else 0
            select.select([self.wakeup], [], [], left)
            self.clear_wakeup()

    def take(self) -> list[int]:
        """Return the signals that have arrived since the last call, in order."""
        taken = []
        while self._arrived:
            taken.append(self._arrived.pop(0))
        return taken

    def clear_wakeup(self) -> None:
        """Make `wakeup` unreadable until the next signal."""
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)

    def stop_waking(self) -> None:
        """Go on recording signals, which nobody reads any more: this process has its exit code and ends.

        `close` would let a further signal end it with another one, for a request to stop may come any number
        of times. What runs the process has to end it by `run_to_the_end`: Python's own end restores the
        handlers.
        """
        signal.set_wakeup_fd(-1)

    def close(self) -> None:
        """Restore the handlers that were there before."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self.wakeup.close()
        self._write_end.close()
