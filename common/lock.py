"""Locks between processes, by flock(2): the kernel frees a lock when its process ends, even by kill -9. A
folder is held by a lease besides where such a lock would not keep out other hosts (`common.hosts`).

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

from common.hosts.lease import CACHED_SECONDS, LEASE_SECONDS, Lease
from common.hosts.mounts import mount_of
from common.standard_error import write_line

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

    lease: held besides the lock, or in its place, where locks do not hold between hosts; else None.
    why: what the lease is for, one line; "" without one.
    """

    def __init__(self, descriptor: int, lease: Lease | None = None, why: str = "") -> None:
        self._descriptor = descriptor
        self.lease, self.why = lease, why

    @classmethod
    def take(cls, folder: Path, *, patience_seconds: float = 3.0) -> FolderLock:
        """Hold `folder`, which must exist. A run that is ending gets `patience_seconds` to end.

        Where locks do not hold between hosts, a holder on another host is watched for a sign of life: up to
        `LEASE_SECONDS`, and `CACHED_SECONDS` more where a cache may answer for the file server.

        Raises BlockingIOError, naming the process that holds the folder, where it is in use, which passes by
        itself; another OSError where the folder cannot be written.
        """
        mount = mount_of(folder)
        try:
            descriptor, why = _take_lock_in(folder, patience_seconds)
            if not why and mount is not None and not mount.locks_reach_other_hosts:
                why = f"locks of {mount.kind}, as it is mounted at {mount.point}, hold on one host only"
            if not why:
                return cls(descriptor)
            cached = mount is not None and not mount.opens_ask_the_server
            try:
                lease = Lease.take(
                    folder,
                    patience_seconds=patience_seconds,
                    silence_seconds=LEASE_SECONDS + CACHED_SECONDS * cached,
                )
            except BaseException:
                _close(descriptor)
                raise
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by {str(error) or 'another process'}: run the same command again when "
                "that has ended, or give this run another name or run_dir"
            ) from None
        if lease.told:
            write_line(lease.told)
        return cls(descriptor, lease, f"{folder}: {why}; held by lease {lease.epoch}")

    def check(self) -> None:
        """Return where this process still holds the folder. RuntimeError where another one has taken it,
        OSError where that cannot be read.
        """
        if self.lease is not None:
            self.lease.check()

    def release(self) -> None:
        """Free the folder."""
        if self.lease is not None:
            self.lease.release()
        _close(self._descriptor)
        self._descriptor = -1


def _take_lock_in(folder: Path, patience_seconds: float) -> tuple[int, str]:
    """Return the descriptor of the folder's lock; -1, and why, where the file system has no locks."""
    try:
        descriptor = take_lock(folder / ".lock", patience_seconds=patience_seconds)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return -1, f"the file system has no locks ({os.strerror(error.errno)})"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor, ""


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)
