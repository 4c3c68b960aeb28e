"""What to do where a run's folder cannot be written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def explained(error: Exception, folder: Path) -> str:
    """The error's text; of a full disk, or a run folder that cannot be had, with where and what to do.

    A write names no file in its error: that was in `folder`, the run's.
    """
    if not isinstance(error, OSError) or error.errno not in NO_ROOM + REFUSED:
        return str(error)
    where = Path(os.fsdecode(error.filename)) if error.filename else folder
    if error.errno in NO_ROOM:
        remedy = "make room and run the same command again, or set run_dir to a folder on another disk"
    elif where.is_relative_to(folder) or folder.is_relative_to(where):
        remedy = "set run_dir to a folder that you can write to"
    else:  # another's file, such as a corpus
        return str(error)
    return f"{where}: {os.strerror(error.errno)}: {remedy}"


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Raise an OSError with its text `explained`, for what is told to other ranks."""
    try:
        yield
    except OSError as error:
        if (what := explained(error, folder)) == str(error):
            raise
        raise OSError(what) from error
