"""Locks between processes, by flock(2): the kernel frees a lock when its process ends, even by kill -9.

Not the `filelock` package: where a file system lacks flock it falls back to a lock file that a killed process
leaves behind, it waits by polling, and it cannot name the process that holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# The error numbers of flock on a file system without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_POLL_SECONDS = 0.05


def take_lock(path: Path, *, patience_seconds: float) -> int:
    """Create `path` if it is missing and lock it; return the open descriptor. Closing it frees the lock.

    Wait up to `patience_seconds` for another process that holds the lock; `math.inf` waits for ever. The file
    is never removed: two processes could then lock two files of one name.

    Raises BlockingIOError, with the file's content as its message, where the lock is still held after that;
    another OSError where `path` cannot be written or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + patience_seconds
    waits = 0 if math.isinf(patience_seconds) else fcntl.LOCK_NB
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | waits)
            return descriptor
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise BlockingIOError(holder) from None
        except BaseException:
            os.close(descriptor)
            raise


@contextlib.contextmanager
def locked(path: Path, *, patience_seconds: float = math.inf) -> Iterator[None]:
    """Hold the lock of the file `path` inside the `with` block. Raises as `take_lock`."""
    descriptor = take_lock(path, patience_seconds=patience_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


class FolderLock:
    """A run folder held by this process until `release` or until the process ends.

    Of two runs that write to the same logs, each would lose the other's lines.

    unsupported: why there is no lock, where the file system has none; "" where the lock is held.
    """

    def __init__(self, descriptor: int, unsupported: str = "") -> None:
        self._descriptor = descriptor
        self.unsupported = unsupported

    @classmethod
    def take(cls, folder: Path, *, patience_seconds: float = 3.0) -> FolderLock:
        """Hold `folder`, which must exist. A run that is ending gets `patience_seconds` to end.

        Raises BlockingIOError, naming the process that holds the folder, where it is in use, which passes by
        itself; another OSError where the folder cannot be written.
        """
        try:
            descriptor = take_lock(folder / ".lock", patience_seconds=patience_seconds)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by {str(error) or 'another process'}: run the same command again when "
                "that has ended, or give this run another name or run_dir"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return cls(-1, f"{folder}: the filesystem has no locks ({os.strerror(error.errno)})")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Free the folder."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
