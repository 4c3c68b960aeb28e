"""A folder held by a lease: for file systems that several hosts share, and whose locks hold on one host only.

The lease is a file, `.lease-N`. N is the fencing epoch: each holder's is higher than all before, and a file
of that name is created exclusively (O_EXCL), so of two that want the same epoch one gets it. (Not by link(2),
which is sent again where its answer is lost, and then fails although it has succeeded; NFS knows an exclusive
creation again by a mark.) The holder writes a counter into its own file every third of `LEASE_SECONDS`, and
no other process does: a holder that stood still for hours overwrites nothing of its successor.

A newcomer compares no clocks: it watches for `LEASE_SECONDS` of its own clock whether the file changes. If so
the folder is in use; if not the newcomer takes the next epoch. Time in which the file server did not answer
does not count, for the holder had no answer either. A holder that has ended as this kernel knows, or that has
freed the lease, is not waited for. The newest file stays when the lease is freed, so that epochs only grow.

What is promised: of processes that go on, one holds the folder. One that stood still for longer than the
lease learns at `check`, before its next write, that it holds the folder no more. (Gray and Cheriton,
"Leases", 1989; the number as in Burrows, "The Chubby lock service", 2006.)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from pathlib import Path

from common.files import look_again, write_all
from common.hosts.lease_file import BYTES, Found, Owner, content_of, epochs_in, newest, path_of, this_process

LEASE_SECONDS = 30.0
# By which a change may be seen late where a cache answers an open: as long as attributes are usually kept.
CACHED_SECONDS = 60.0


class Lease:
    """The right to write in a folder. `take` it, `check` it before each commit, `release` it.

    epoch: its number.
    told: how it was come by where another process was waited for, one line; else "".
    """

    def __init__(self, folder: Path, epoch: int, owner: Owner, seconds: float) -> None:
        self._folder, self.epoch, self.told = folder, epoch, ""
        self._owner, self._seconds = owner, seconds
        self._path = path_of(folder, epoch)
        self._token, self._beat = secrets.token_hex(8), 0
        self._lost = ""
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._renewed = _clock()

    @classmethod
    def take(
        cls,
        folder: Path,
        *,
        patience_seconds: float,
        owner: Owner | None = None,
        seconds: float = LEASE_SECONDS,
        silence_seconds: float = LEASE_SECONDS,
    ) -> Lease:
        """Hold `folder`, which must exist. A holder that is alive gets `patience_seconds` to free it.

        owner: who takes it; None: this process.
        seconds: the lease's length; its holder renews it three times in that.
        silence_seconds: after which a holder that does not renew its lease is taken for dead.

        Raises BlockingIOError, with the holder as its message, where the folder is in use; another OSError
        where it cannot be written.
        """
        owner = owner or this_process()
        watch, known = _Watch(), 0
        deadline = time.monotonic() + patience_seconds
        while True:
            epoch, found = newest(folder, known)
            if found is not None and not found.content:
                look_again(path_of(folder, epoch + 1))  # or a listing that is remembered hides it
            silent = watch.silent_seconds(epoch, found)
            if found is None or found.may_be_had() or silent >= silence_seconds:
                lease = cls(folder, epoch + 1, owner, seconds)
                if known := lease._create():
                    continue
                if found is not None and silent >= silence_seconds:
                    before = found.owner or "a process that wrote no name"
                    lease.told = (
                        f"{before} gave no sign of life in {silent:.0f} s of waiting, and has lost {folder}"
                    )
                lease._begin()
                return lease
            if time.monotonic() >= deadline and watch.is_alive(found):
                raise BlockingIOError(str(found.owner or "another process"))
            time.sleep(min(0.5, silence_seconds / 20))

    def check(self) -> None:
        """Return where this process still holds the folder. Reads the file only where the last renewal is
        longer ago than the lease: a process that stood still learns so what became of the folder.

        RuntimeError, one line, where another process has taken the folder; OSError where that cannot be read.
        """
        if not self._lost and _clock() - self._renewed > self._seconds:
            look_again(self._next())  # or a name remembered as missing would hide the successor
            self._renew()
        if self._lost:
            raise RuntimeError(self._lost)

    def release(self) -> None:
        """Free the folder, if it is still held."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._renew(is_free=True)

    def _next(self) -> Path:
        return path_of(self._folder, self.epoch + 1)

    def _create(self) -> int:
        """Create the file; return 0, or the epoch that another process has, where one was quicker."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            look_again(self._path)
            return self.epoch
        try:
            write_all(descriptor, content_of(self._owner, self._token, 0, is_free=False))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # The folder's listing is fresh now. This process may have stood still since it read the last lease.
        epochs = sorted({*epochs_in(self._folder), self.epoch})
        if epochs[-1] > self.epoch:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            return epochs[-1]
        # Ascending: whoever still finds an old file also finds the one above it taken.
        for old in epochs[:-1]:
            with contextlib.suppress(FileNotFoundError):
                path_of(self._folder, old).unlink()
        return 0

    def _begin(self) -> None:
        threading.Thread(target=self._renew_often, name="lease", daemon=True).start()

    def _renew_often(self) -> None:
        pause = self._seconds / 3
        while not self._over.wait(pause) and not self._lost:
            try:
                self._renew()
                pause = self._seconds / 3
            except OSError:  # the server is away for the moment, or the disk is full
                pause = self._seconds / 30

    def _renew(self, is_free: bool = False) -> None:
        """Write the counter into this process's own file, which is never created again."""
        with self._mutex:
            if self._lost or (self._over.is_set() and not is_free):
                return
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                self._lose()
                return
            try:
                if self._token.encode() not in os.pread(descriptor, BYTES, 0) or self._next().exists():
                    self._lose()
                    return
                self._beat += 1
                began = _clock()
                os.pwrite(descriptor, content_of(self._owner, self._token, self._beat, is_free=is_free), 0)
                os.fsync(descriptor)
                self._renewed = began
            finally:
                os.close(descriptor)

    def _lose(self) -> None:
        epoch, found = newest(self._folder, self.epoch)
        who = found.owner if found and found.owner and epoch > self.epoch else "another process"
        self._lost = (
            f"{self._folder} was taken over by {who} (lease {max(epoch, self.epoch + 1)}): this process had "
            f"not renewed lease {self.epoch} for {_clock() - self._renewed:.0f} s, and writes nothing more"
        )


class _Watch:
    """How long the newest lease has not changed while it could be read."""

    def __init__(self) -> None:
        self._epoch, self._content = 0, b""
        self._since = self._looked = time.monotonic()
        self._has_changed = False

    def silent_seconds(self, epoch: int, found: Found | None) -> float:
        now, content = time.monotonic(), found.content if found else b""
        if (epoch, content) != (self._epoch, self._content):
            # Another epoch may be a dead process's. A file without content was removed, or is just begun.
            self._has_changed = epoch == self._epoch and content != b""
            self._epoch, self._content, self._since = epoch, content, now
        elif now - self._looked > LEASE_SECONDS / 6:  # the server was away, or this process stood still
            self._since = now
        self._looked = now
        return now - self._since

    def is_alive(self, found: Found | None) -> bool:
        """Whether the holder has been seen alive: by a change, or as a process of this kernel."""
        owner = found.owner if found else None
        return self._has_changed or (owner is not None and owner.kernel == this_process().kernel != "")


def _clock() -> float:
    """Seconds that count while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
