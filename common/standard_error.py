"""Standard error that never ends a run: its reader may go (`… 2>&1 | tee log`), a log's disk may be full."""

import contextlib
import io
import os
import sys

from common.exit_codes import NOBODY_READS
from common.printable import printable


class _Forgiving(io.FileIO):
    """A descriptor that drops the bytes which cannot be written."""

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """Return the number of bytes in `data`, written or not."""
        with contextlib.suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def forgive() -> None:
    """From here on drop what this process cannot write on standard error, instead of raising."""
    if sys.stderr is not None:
        raw = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", line_buffering=True)


def write(data: bytes) -> None:
    """Write to standard error from any thread, past Python's buffer; drop what cannot be written."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def write_line(line: str) -> None:
    """Write one line with `write`."""
    write(f"{line}\n".encode())


def complain(error: object, code: int) -> int:
    """Print an error as one line; return `code`, the exit code that goes with the error."""
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    return code


def nobody_reads() -> int:
    """Drop what is still to be written on standard output, whose reader has gone; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOBODY_READS
