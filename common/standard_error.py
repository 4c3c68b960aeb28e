"""Standard error that never ends a run: its reader may go (`… 2>&1 | tee log`), a log's disk may be full."""

import contextlib
import io
import os
import sys


class _Forgiving(io.FileIO):
    """A descriptor on which what cannot be written is dropped."""

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """The bytes of `data`, written or not."""
        with contextlib.suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def forgive() -> None:
    """From here on what this process says on standard error, and cannot, is dropped."""
    if sys.stderr is not None:
        raw = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", line_buffering=True)


def write(data: bytes) -> None:
    """From whatever thread, past what is buffered; what cannot be written is dropped."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def say(line: str) -> None:
    """One line."""
    write(f"{line}\n".encode())
