"""Errors of a full disk, a run folder that cannot be written or too many open files, with what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.mapped_file import too_many_open_files

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def explained(error: Exception, folder: Path) -> str:
    """Return the error's text; for a full disk, a run folder that cannot be written or too many open files,
    where it happened and what to do.

    The error of a write names no file: then the file was in `folder`, the run's.
    """
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return too_many_open_files(str(error.filename or "a file"))
    if not isinstance(error, OSError) or error.errno not in NO_ROOM + REFUSED:
        return str(error)
    where = Path(os.fsdecode(error.filename)) if error.filename else folder
    if error.errno in NO_ROOM:
        remedy = "make room and run the same command again, or set run_dir to a folder on another disk"
        return f"{where}: {os.strerror(error.errno)}: {remedy}"
    if where.is_relative_to(folder) or folder.is_relative_to(where):
        at = "" if where == folder else f"{where}: "
        why = f"{at}{os.strerror(error.errno)}"
        return f"run_dir={folder}: {why}: set run_dir to a folder that you can write to"
    return str(error)  # another's file, such as a corpus


def check_folder(folder: Path) -> None:
    """ValueError where the run folder can neither be made nor written to: as `explained`, but at once."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not there.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = errno.EACCES
    else:
        return
    raise ValueError(explained(OSError(reason, "", str(there)), folder))


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Raise an OSError with its text `explained`, for an error that other ranks will report."""
    try:
        yield
    except OSError as error:
        if (what := explained(error, folder)) == str(error):
            raise
        raise OSError(what) from error
