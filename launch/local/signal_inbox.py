"""Signals that arrive at the supervisor: recorded for its loop, which they wake."""

import contextlib
import signal
import socket
from collections.abc import Iterable


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
        handlers = dict.fromkeys(numbers, lambda number, frame: self._arrived.append(number))
        handlers[signal.SIGCHLD] = lambda number, frame: None
        self._old_handlers = {number: signal.signal(number, handlers[number]) for number in handlers}

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

    def close(self) -> None:
        """Restore the handlers that were there before."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self.wakeup.close()
        self._write_end.close()
