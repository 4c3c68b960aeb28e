"""The folder that an export writes until it is whole, beside its place and under another name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def draft_of(out: Path) -> Iterator[Path]:
    """Make a folder beside `out` for the `with` block, which may rename it; what is left of it is removed.

    So are drafts of `out` that killed exports have left, which are as large as a model: a process locks its
    own, and the kernel frees the lock. Where the file system has no locks on folders they stay.
    """
    _remove_left(out)
    draft, lock = _made(out)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def is_draft(path: Path, out: Path) -> bool:
    """Whether `path` is the name of a draft of `out`."""
    name = rf"\.tmp-{re.escape(out.name)}-[0-9a-f]{{12}}"
    return path.parent == out.parent and re.fullmatch(name, path.name) is not None


def _made(out: Path) -> tuple[Path, int]:
    """Make and lock a draft; return it, and the descriptor of the lock."""
    while True:
        # Not the process's number: in containers all have the same.
        draft = out.with_name(f".tmp-{out.name}-{uuid4().hex[:12]}")
        draft.mkdir()
        # Until it is locked another export may take it for one that was left, and remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(draft, _FOLDER)
            with contextlib.suppress(OSError):  # no locks here
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if draft.is_dir():
                return draft, lock
            os.close(lock)


def _remove_left(out: Path) -> None:
    for entry in os.scandir(out.parent):
        if is_draft(Path(entry.path), out) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                lock = os.open(entry.path, _FOLDER)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path)
                finally:
                    os.close(lock)
