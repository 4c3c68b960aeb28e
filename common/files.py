"""Writing small files so that a crash leaves the old content or the new, never a part of either."""

import os
from collections.abc import Callable
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames) survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) may write less than it was given; write the rest too."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def write_durably(path: Path, data: bytes) -> None:
    """Create `path`, its content on disk when this returns (its name in the folder is not yet)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, *, look: Callable[[], None] = lambda: None) -> None:
    """Create or replace `path` in one step, on disk when this returns. The draft is named `.tmp-…`.

    `look` raises where this process may write no more (`trainer.folder.fence`); it is called before the
    replacement.
    """
    draft = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_durably(draft, data)
        look()
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
