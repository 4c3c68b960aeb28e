"""The folder that an export makes: whole, or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.files import fsync_folder
from trainer.export.draft import draft_of, is_draft
from trainer.process.disk import NO_ROOM, REFUSED


def check_new(out: Path) -> None:
    """ValueError where something is at `out` already."""
    if out.exists():
        raise ValueError(f"--out {out}: exists already, and nothing is overwritten: give another folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, which is renamed to `out` at the end. Its files are to be on disk by
    then. The folders above that are missing are made. After an error nothing is left but these.

    Raises:
        ValueError: no folder can be made or written there, or `out` was made meanwhile.
        RuntimeError: the disk is full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(out) as draft:
            yield draft
            fsync_folder(draft)
            if out.exists():
                raise ValueError(f"--out {out}: was made meanwhile by another program: give another folder")
            os.rename(draft, out)
        fsync_folder(out.parent)
    except OSError as error:
        _explain(error, out)
        raise


def _explain(error: OSError, out: Path) -> None:
    """Raise one line with the remedy, where the error is of the folder's disk. A write's names no file."""
    place = Path(os.fsdecode(error.filename)) if error.filename else out
    draft = next((one for one in (place, *place.parents) if is_draft(one, out)), out)
    if error.errno in NO_ROOM:
        raise RuntimeError(
            f"--out {out}: {os.strerror(error.errno)}: make room and run the same command again, or give a "
            "folder on another disk"
        ) from None
    if error.errno in REFUSED and (draft in (place, *place.parents) or place in out.parents):
        reason = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno
        at = "" if place == draft else f"{place}: "
        raise ValueError(
            f"--out {out}: {at}{os.strerror(reason)}: give a folder that you can write to"
        ) from None
