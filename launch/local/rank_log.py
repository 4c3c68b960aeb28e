"""One rank's log: the lines that it prints, kept in a file of bounded size in the run folder."""

import os
import re
from collections.abc import Callable
from pathlib import Path

LOG_BYTES = 8 << 20  # then the file becomes NAME.1, in the place of an older one
HELD_BYTES = 1 << 20  # of lines that wait for the run folder; the first of them are dropped beyond
_DRAWN = re.compile(rb"[^\r]*\r(?!$)|\x1b\[[0-9;?]*[A-Za-z]|\r$")  # a progress line that was overwritten


class RankLog:
    """Appends a rank's lines to a file, once `may_write()`: the run folder exists and this run's ranks hold
    it. A log that cannot be written ends no run: its lines are dropped.

    path: the file.
    """

    def __init__(self, path: Path, may_write: Callable[[], bool]) -> None:
        self.path = path
        self._may_write = may_write
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._fd = -1
        self._failed = False

    def line(self, line: bytes) -> None:
        """Keep one line; `line` has no line end."""
        self._held.append(_DRAWN.sub(b"", line) + b"\n")
        self._held_bytes += len(self._held[-1])
        while self._held_bytes > HELD_BYTES:
            self._held_bytes -= len(self._held.pop(0))
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait, if that may be done by now."""
        if self._failed or not self._held or (self._fd < 0 and not self._may_write()):
            return
        try:
            self._write(b"".join(self._held))
        except OSError:
            self._failed = True
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        elif os.fstat(self._fd).st_size > LOG_BYTES:
            os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
            os.close(self._fd)
            self._open()
        os.write(self._fd, data)

    def _open(self) -> None:
        self._fd = -1
        self.path.parent.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o644)
