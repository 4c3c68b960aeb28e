"""One rank's log: the lines that it prints, kept in a file of bounded size in the run folder.

A thread writes the logs: a file system that hangs must not keep a supervisor from answering signals.
"""

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common.standard_error import write_line

LOG_BYTES = 8 << 20  # then the file becomes NAME.1, in the place of an older one
HELD_BYTES = 1 << 20  # of lines that wait for the run folder; the first of them are dropped beyond
CHECK_SECONDS = 1.0  # between two looks at whether the run folder is still held by this run's ranks
OPEN_LOGS = 256  # at once; the usual soft limit of open files is 1024
CLOSE_SECONDS = 2.0  # in which the thread has to write what waits when a log is closed
_STYLE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # a terminal's colours, and moves of its cursor


class _Writer:
    """The thread that writes all logs of this process. It begins with the first of them.

    hangs: a log could not be closed in time, which has been said. No further one is waited for, until the
        thread is back.
    """

    def __init__(self) -> None:
        self._logs: queue.SimpleQueue[RankLog] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.hangs = False
        self._has_failed = False
        self._open: dict[RankLog, None] = {}  # in the order of their last lines

    def wake(self, log: "RankLog") -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
            self._thread.start()
        self._logs.put(log)

    def give_up(self, path: Path) -> None:
        """Say, once, that a log is not written."""
        if not self.hangs:
            self.hangs = True
            write_line(f"{path.parent} does not answer: lines that the ranks print are missing in its logs")

    def failed(self, path: Path, error: OSError) -> None:
        """Say, once, that a log cannot be written."""
        if not self._has_failed:
            self._has_failed = True
            write_line(f"{path}: {error.strerror or error}: lines that the ranks print are missing there")

    def _run(self) -> None:
        while True:
            log = self._logs.get()
            log.write_now()
            self.hangs = False
            self._open.pop(log, None)
            if log.is_open:
                self._open[log] = None
            if len(self._open) > OPEN_LOGS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.close_file()


_WRITER = _Writer()


class RankLog:
    """Appends a rank's lines to a file, once `may_write()`: the run folder exists and this run's ranks hold
    it, which is asked again now and then. A log that cannot be written ends no run: its lines are dropped.

    Its methods return at once, `close` within `CLOSE_SECONDS`.

    path: the file.
    """

    def __init__(self, path: Path, may_write: Callable[[], bool]) -> None:
        self.path = path
        self._may_write = may_write
        self._lock = threading.Lock()  # of the next three fields
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_queued = False
        self._closing = False
        self._closed = threading.Event()
        # Of the writing thread alone:
        self._fd = -1
        self._failed = False
        self._checked = 0.0
        self._may = False

    def line(self, line: bytes) -> None:
        """Keep one line; `line` has no line end."""
        drawn_last = line.removesuffix(b"\r").rpartition(b"\r")[2]  # of a progress line
        kept = _STYLE.sub(b"", drawn_last) + b"\n"
        with self._lock:
            self._held.append(kept)
            self._held_bytes += len(kept)
            while self._held_bytes > HELD_BYTES:
                self._held_bytes -= len(self._held.pop(0))
        self.flush()

    def flush(self) -> None:
        """Have the lines that wait written, if that may be done by now."""
        with self._lock:
            if self._is_queued or not (self._held or self._closing):
                return
            self._is_queued = True
        _WRITER.wake(self)

    def close(self) -> None:
        """Write what waits, if the file system answers in time; close the file."""
        self._closing = True
        self.flush()
        if not self._closed.wait(0.0 if _WRITER.hangs else CLOSE_SECONDS):
            _WRITER.give_up(self.path)

    def write_now(self) -> None:
        """Write the lines that wait. For the writing thread alone."""
        with self._lock:
            self._is_queued = False
        closing = self._closing  # before the look at what waits: nothing comes after `close`
        try:
            if self._may_write_now(at_once=closing):
                self._write(self._take())
        except OSError as error:
            self._failed = True
            _WRITER.failed(self.path, error)
        if self._failed:
            self._take()
        if closing:
            self.close_file()
            self._closed.set()

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def close_file(self) -> None:
        """Close the file; the next line opens it again. For the writing thread alone."""
        # The number is given up first: where closing fails (a file server that writes late, over the quota),
        # the descriptor is closed all the same, and its number may soon be another file's.
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _take(self) -> bytes:
        with self._lock:
            data = b"".join(self._held)
            self._held, self._held_bytes = [], 0
        return data

    def _may_write_now(self, *, at_once: bool) -> bool:
        """Whether there is something to write, and the folder is this run's. Of an open log that is asked
        once in `CHECK_SECONDS`, before the file is replaced, and `at_once` when the log is closed.
        """
        if self._failed or not self._held:
            return False
        now = time.monotonic()
        fresh = self._fd >= 0 and now < self._checked + CHECK_SECONDS and not self._is_full()
        if at_once or not fresh:
            self._checked, self._may = now, self._may_write()
        return self._may

    def _is_full(self) -> bool:
        return os.fstat(self._fd).st_size > LOG_BYTES

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        elif self._is_full():
            self._rotate()
        os.write(self._fd, data)

    def _rotate(self) -> None:
        """Make the file NAME.1, unless another process, whose ranks write here too, has just done so."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
        self.close_file()
        self._open()

    def _open(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        # A pipe in the file's place has no reader: without O_NONBLOCK, opening it lasts for ever.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o644)
