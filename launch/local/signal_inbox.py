"""Signals that arrive at the supervisor: recorded for its loop, which they wake."""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterable


def _left_ignored(number: int) -> bool:
    """Whether a signal stays ignored that this process inherited as ignored: Ctrl-C and Ctrl-Z, as in a
    script's background job. A script that ignores a request to stop (`trap '' USR1`) means only itself.
    """
    return number in (signal.SIGINT, signal.SIGTSTP) and signal.getsignal(number) == signal.SIG_IGN


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
        taken = [number for number in numbers if not _left_ignored(number)]
        handlers = dict.fromkeys(taken, lambda number, frame: self._arrived.append(number))
        handlers[signal.SIGCHLD] = lambda number, frame: None
        self._old_handlers = {number: signal.signal(number, handlers[number]) for number in handlers}

    def wait(self, seconds: float) -> int:
        """Return the first signal that arrives within `seconds`, and keep it for `take`; 0 without one."""
        deadline = time.monotonic() + seconds
        while not self._arrived and (left := deadline - time.monotonic()) > 0:
            select.select([self.wakeup], [], [], left)
            self.clear_wakeup()
        return self._arrived[0] if self._arrived else 0

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
