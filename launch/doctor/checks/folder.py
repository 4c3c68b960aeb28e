"""The file system under a run folder or a corpus: can it be written, is there room, is it sound?"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.hosts.mounts import mount_of
from launch.doctor.check import Circumstances
from launch.doctor.checks import folder_work
from launch.doctor.finding import Finding, Level, error, note, ok, one_line, warning
from launch.tables import size

GIB = 1 << 30
FULL_BYTES = GIB
SCARCE_BYTES = 10 * GIB
SCARCE_FILES = 10_000
PREFIX = ".germinal-doctor-"

# Type of file system → what becomes of files there.
PASSING = {
    "tmpfs": "it lies in memory: files are lost at a reboot, and they take memory from the ranks",
    "ramfs": "it lies in memory: files are lost at a reboot, and they take memory from the ranks",
    "overlay": "it belongs to a container: files are lost with it",
}


def check(at: Circumstances, folder: Path) -> Iterator[Finding]:
    """Everything about the file system under `folder`, or under the nearest folder above that exists.

    A folder is made there and removed again.
    """
    there = nearest(folder.absolute())
    yield from kind(there)
    try:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=there))
    except OSError as problem:
        text = f"{there} cannot be written: {problem.strerror}"
        yield error(
            "folder.writable",
            text,
            "choose another folder (run_dir of the config), or mend its mount or rights",
        )
        yield from room(there)
        return
    try:
        has_room = True
        for finding in room(there):
            has_room = has_room and finding.level < Level.ERROR
            yield finding
        yield from folder_work.check(place, there, has_room=has_room)
    except OSError as problem:
        text = f"{there}: {one_line(problem.strerror or problem)}, in the middle of writing"
        yield error(
            "folder.writable", text, "make room there, see your quota (`quota -s`), or choose another folder"
        )
    finally:
        remove(place)


def nearest(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def remove(folder: Path) -> None:
    """Remove a folder of the doctor's, as far as that is possible."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        folder.rmdir()


def kind(there: Path) -> Iterator[Finding]:
    """Of which type the file system under `there` is, and what that means."""
    mount = mount_of(there)
    if mount is None:
        return
    if why := PASSING.get(mount.kind):
        yield warning("folder.kind", f"{there} is on {mount.kind}: {why}", "put runs and corpora on a disk")
        return
    if not mount.locks_reach_other_hosts:
        text = f"{there} is on {mount.kind} with locks that hold on this node only ({mount.point})"
        yield note(
            "folder.kind",
            text,
            f"NFS: mount it without nolock and local_lock, Lustre with flock; {folder_work.LEASE}",
        )
    else:
        yield ok(
            "folder.kind",
            f"{there} is on {mount.kind}, mounted at {mount.point}",
            same={"file system": mount.kind},
        )


def room(there: Path) -> Iterator[Finding]:
    """Free bytes and free files."""
    at = os.statvfs(there)
    free, files = at.f_frsize * at.f_bavail, at.f_favail
    text = f"{there} has {size(free)} free"
    remedy = "make room there (`germinal checkpoint list`, checkpoint.keep), or choose another folder"
    if free < FULL_BYTES:
        yield error("folder.room", f"{text}: the next checkpoint fails", remedy)
    elif free < SCARCE_BYTES:
        yield warning(
            "folder.room", f"{text}: a checkpoint has 12 bytes a parameter, and several are kept", remedy
        )
    else:
        yield ok("folder.room", text)
    if at.f_files and files < SCARCE_FILES:  # some file systems count no files
        make = error if files < 100 else warning
        yield make("folder.files", f"{there} has room for {files} files only (inodes)", "remove files there")
