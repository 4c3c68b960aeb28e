"""Does every node see the same folder, how late, and do locks and appends hold between nodes?

Steps that the nodes make one after another, each when all have made the one before. The first node makes the
folder `place` and its files; the others look, and then all write.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.files import write_durably
from common.lock import take_lock
from launch.doctor.apart import end_with_parent
from launch.doctor.checks.folder import PREFIX, remove
from launch.doctor.checks.folder_work import APPENDS, LEASE, append_lines, count_lines
from launch.doctor.finding import Finding, error, ok, warning

POLL_SECONDS = 0.01
SEEN_WITHIN_SECONDS = 10.0  # attribute caches of NFS last up to 60 s by default; a folder's up to 60 s too
LATE_SECONDS = 3.0
HELD_WITHIN_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """The folder of a shared test, as one node sees it.

    folder: the folder that the user named.
    name: part of the name of the folder that the first node makes in it.
    first: the node that makes it.
    hosts: all nodes.
    host: this node.
    clock_offset_seconds: by which the first node's clock is ahead of this node's.
    """

    folder: Path
    name: str
    first: str
    hosts: tuple[str, ...]
    host: str
    clock_offset_seconds: float

    @property
    def path(self) -> Path:
        return self.folder / f"{PREFIX}{self.name}"

    @property
    def is_first(self) -> bool:
        return self.host == self.first


def make(at: Place) -> Iterator[Finding]:
    """The first node makes the folder, and a file for the others to see."""
    if at.is_first:
        at.path.mkdir()
        write_durably(at.path / "token", at.name.encode())
        for name in ("appended", "together", "lock"):
            write_durably(at.path / name, b"")
        yield ok("folder.made", f"{at.path} made")


def see(at: Place) -> Iterator[Finding]:
    """The others find the folder, and ask for what is not there yet: caches may remember that."""
    if at.is_first:
        return
    if not wait_for(lambda: (at.path / "token").read_bytes() == at.name.encode(), SEEN_WITHIN_SECONDS):
        text = f"{at.folder} is not the folder that {at.first} has: a file made there was not seen here"
        remedy = "put the run folder on a file system that all nodes share, and mount it on this node"
        yield error("folder.shared", text, remedy)
        return
    (at.path / "renamed").exists()
    (at.path / "appended").read_bytes()
    yield ok("folder.shared", f"{at.folder} is the same folder as on {at.first}")


def write(at: Place) -> Iterator[Finding]:
    """The first node appends and renames, each with its time."""
    if at.is_first:
        write_durably(at.path / "draft", repr(time.time()).encode())
        os.replace(at.path / "draft", at.path / "renamed")
        with (at.path / "appended").open("ab", buffering=0) as file:
            file.write(repr(time.time()).encode())
            os.fsync(file.fileno())
        yield ok("folder.written", "renamed and appended")


def watch(at: Place) -> Iterator[Finding]:
    """The others measure how late they see that; it begins before `write`."""
    if at.is_first:
        return
    late: dict[str, float] = {}
    began = time.time()
    for name, what in (("renamed", "a rename"), ("appended", "an append")):
        if not wait_for(partial(_has_time, at.path / name), 2 * SEEN_WITHIN_SECONDS):
            late[what] = float("inf")
            continue
        written = float((at.path / name).read_bytes()) - at.clock_offset_seconds
        late[what] = max(0.0, time.time() - max(began, written))
    told = ", ".join(
        f"{what} on {at.first} was {'seen' if seconds < float('inf') else 'not seen'} here "
        + (f"after {seconds:.2g} s" if seconds < float("inf") else f"within {2 * SEEN_WITHIN_SECONDS:g} s")
        for what, seconds in late.items()
    )
    if max(late.values()) > LATE_SECONDS:
        remedy = (
            "mount it with a shorter attribute cache (NFS: actimeo=1): another start of a run is seen so late"
        )
        yield warning("folder.late", f"{at.folder}: {told}", remedy)
    else:
        yield ok("folder.late", f"{at.folder}: {told}", measured={"seen_after_seconds": max(late.values())})


def try_lock(at: Place) -> Iterator[Finding]:
    """The others try the lock that the first node holds."""
    if at.is_first:
        return
    try:
        os.close(take_lock(at.path / "lock", patience_seconds=0))
    except BlockingIOError:
        yield ok("folder.shared_lock", f"{at.folder}: a lock of {at.first} keeps this node out")
        return
    except OSError as problem:
        text = f"{at.folder}: no lock between nodes: {problem.strerror}"
        yield warning("folder.shared_lock", text, f"choose a file system with locks; {LEASE}")
        return
    text = f"{at.folder}: this node got a lock that {at.first} held: locks hold on one node only"
    remedy = f"mount it with locks for all nodes (Lustre: flock; NFS: not nolock, not local_lock); {LEASE}"
    yield warning("folder.shared_lock", text, remedy)


def append(at: Place) -> Iterator[Finding]:
    """All append to one file at the same time."""
    append_lines(at.path / "together", at.host)
    yield ok("folder.appended", f"{APPENDS} lines appended")


def count(at: Place) -> Iterator[Finding]:
    """The first node counts what came of it."""
    if not at.is_first:
        return
    lines = APPENDS * len(at.hosts)
    counted = (lines, 0)

    def all_there() -> bool:
        nonlocal counted
        counted = count_lines(at.path / "together", at.hosts)
        return counted == (0, 0)

    wait_for(all_there, SEEN_WITHIN_SECONDS)
    lost, torn = counted
    if lost or torn:
        text = f"{at.folder}: of {lines} lines that all nodes appended, {lost} are lost and {torn} torn"
        remedy = (
            "as usual on NFS; a run's logs have one writer each: never start one run twice at the same time"
        )
        yield warning("folder.shared_append", text, remedy)
    else:
        yield ok("folder.shared_append", f"{at.folder}: {lines} lines of {len(at.hosts)} nodes are whole")


def _has_time(file: Path) -> bool:
    return float(file.read_bytes()) > 0


def wait_for(reached: Callable[[], bool], seconds: float) -> bool:
    """Whether `reached` became true within `seconds`; a file that is not there, or is empty, counts as no."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if reached():
                return True
        except (OSError, ValueError):
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def clean(at: Place) -> Iterator[Finding]:
    """The first node removes the folder."""
    if at.is_first:
        remove(at.path)
        yield ok("folder.removed", f"{at.path} removed")


def hold_lock(at: Place) -> int:
    """Hold the lock in a process of its own until that is killed; return its number, or 0 where the lock
    cannot be had within `HELD_WITHIN_SECONDS`.
    """
    ours, theirs = os.pipe()
    parent, child = os.getpid(), os.fork()
    if not child:
        end_with_parent(parent)
        try:
            held = take_lock(at.path / "lock", patience_seconds=0)
            os.write(theirs, b"held")
            signal.pause()
            os.close(held)
        finally:
            os._exit(1)
    os.close(theirs)
    ready, _, _ = select.select([ours], [], [], HELD_WITHIN_SECONDS)
    is_held = bool(ready) and os.read(ours, 4) == b"held"
    os.close(ours)
    if not is_held:
        os.kill(child, signal.SIGKILL)
    return child if is_held else 0


STEPS = {step.__name__: step for step in (make, see, write, watch, try_lock, append, count, clean)}
