"""Fencing: of two starts of one run, only the later may write.

The folder's lock (`common.lock`) belongs to rank 0 alone. A rank that was left behind, by a launcher or a
rank 0 that died, must not write into the run of its successor. So every start takes the next epoch: its mark
replaces the one in the run folder's `.epoch`. Every writer of the run checks that the mark is still its own
before each append and each rename.

What is promised: a process that has not yet checked when the next epoch is taken writes nothing more. A
process that stood still between its check and its write, some microseconds later, makes that one write: into
a file that a resume has replaced (`sinks.truncate_after`), into a folder that bears its own start's name
(`checkpoint.saving.attempt`), or not at all, for before a rename replaces a file the mark is checked once
more. The check opens and reads the file, about 5 µs on a local disk, instead of asking for its attributes:
NFS answers those from a cache for up to a minute, but asks the server at each open (close-to-open
consistency, nfs(5)).
"""

import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from common.files import write_atomically

EPOCH = ".epoch"

# Returns None where this process may write into the run; raises RuntimeError, one line, where it may not.
Guard = Callable[[], None]


def unfenced() -> None:
    """The guard of a writer outside a run: it may always write."""


class Fence:
    """One start's right to write to the run `folder`. Rank 0 takes it; the other ranks `join` with its mark.

    `epoch` counts the starts of the run, from 1; 0 until it is taken or joined.

    within: raises where this process may write no more in a folder that the run is a part of.
    """

    def __init__(self, folder: Path, within: Guard = unfenced) -> None:
        self._folder, self._within = folder, within
        self._path = str(folder / EPOCH)
        self._mark = b""
        self._lock: Guard = unfenced
        self.epoch = 0

    def take(self, lock: Guard = unfenced) -> str:
        """Begin the next epoch, durably; return its mark. Only for the holder of the folder's lock.

        lock: raises where the folder's lock was lost since; checked with the mark, on this rank.
        """
        self._lock = lock
        mark = f"{_epoch(self._read()) + 1} {secrets.token_hex(8)} process {os.getpid()} on {_host()}\n"
        write_atomically(Path(self._path), mark.encode(), guard=self._may_take)
        self.join(mark)
        return mark

    def _may_take(self) -> None:
        self._within()
        self._lock()

    def join(self, mark: str) -> None:
        """Share the epoch that rank 0 took."""
        self._mark = mark.encode()
        self.epoch = _epoch(self._mark)

    def held(self) -> bool:
        """Whether this start's mark is in the folder."""
        return self._read() == self._mark != b""

    @property
    def mark(self) -> str:
        """What `take` returned; "" until this start is taken or joined."""
        return self._mark.decode()

    def check(self) -> None:
        """The `Guard` of this start. RuntimeError where a later start has taken the run, or this one has not
        yet.
        """
        self._within()
        if (found := self._read()) == self._mark != b"":
            self._lock()
            return
        if not self._mark:
            raise RuntimeError(f"{self._folder} is not held by this start of the run yet")
        if not found:
            raise RuntimeError(
                f"{self._path} is gone, by which this run knows that {self._folder} is its own: was the "
                "folder moved or removed? nothing more is written; start the run again"
            )
        who = " ".join(found.decode(errors="replace").split()[2:]) or "another process"
        raise RuntimeError(
            f"{self._folder} was taken over by a later start of the run: {who}, start {_epoch(found)}; this "
            f"is start {self.epoch}, and writes nothing more"
        )

    def _read(self) -> bytes:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.read(descriptor, 512)
        finally:
            os.close(descriptor)


def is_held_by(folder: Path, pid: int) -> bool:
    """Whether the newest start of the run in `folder` is that of process `pid` on this machine."""
    try:
        mark = (folder / EPOCH).read_bytes()
    except OSError:
        return False
    return mark.decode(errors="replace").endswith(f" process {pid} on {_host()}\n")


def is_lost(folder: Path, pid: int | None = None) -> bool:
    """Whether a run folder in which a run has begun was moved or removed; given `pid`, also whether another
    start than that of process `pid` on this machine holds the run. A folder that cannot be read is not lost.
    """
    try:
        (folder / EPOCH).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return pid is not None and not is_held_by(folder, pid)


def _epoch(mark: bytes) -> int:
    """Return the number that a mark begins with, else 0. The rest of the mark distinguishes two starts."""
    number = re.match(rb"\d{1,100} ", mark)
    return int(number[0]) if number else 0


def _host() -> str:
    return socket.gethostname()[:200]
