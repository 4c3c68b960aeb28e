"""Short notes between the ranks of one start, beside the collectives, so that background threads can use
them.

A note is posted once under a key, and read by whoever knows the key. Rank 0 alone lists the folder, for it
waits for notes of all ranks. The others look for one note at a time.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.files import forget_missing
from common.retry import attempts
from trainer.checkpoint.folder import PASSING, RENAME_SECONDS, RENAMES


class Board(Protocol):
    """Where the notes are. Errors are OSErrors."""

    def post(self, key: str, note: bytes) -> None:
        """Show a note to every rank, whole or not at all."""

    def read(self, key: str) -> bytes | None:
        """Return a note; None where there is none."""

    def has(self, key: str) -> bool:
        """Whether there is a note; this host may know of it a minute late."""

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return the keys without a note. For rank 0: its work grows with all notes that there are."""

    def forget_missing(self) -> None:
        """Have the next looks ask the file server, where this host remembers that a note was missing."""

    def claim(self, key: str) -> bool:
        """Whether this is the first claim of `key` by any rank."""

    def drop(self, keys: Sequence[str]) -> None:
        """Take notes down that nobody reads any more."""

    def close(self) -> None:
        """Take all notes down. For rank 0, at its end."""

    def is_closed(self) -> bool:
        """Whether rank 0 has taken all notes down; asked by a rank that has posted one."""


class OwnBoard:
    """The board of a single process."""

    def __init__(self) -> None:
        self._notes: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def post(self, key: str, note: bytes) -> None:
        with self._lock:
            self._notes[key] = note

    def read(self, key: str) -> bytes | None:
        return self._notes.get(key)

    def has(self, key: str) -> bool:
        return key in self._notes

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self._notes]

    def forget_missing(self) -> None:
        pass

    def claim(self, key: str) -> bool:
        return True

    def drop(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._notes.pop(key, None)

    def close(self) -> None:
        self._notes.clear()

    def is_closed(self) -> bool:
        return False


class FolderBoard:
    """Notes as files of a folder that all ranks see. It is made with the first note; `name` is unique to one
    start, so what a dead start left is not taken for this one's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def post(self, key: str, note: bytes) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / key
        draft = path.with_name(f"{key}.draft-{os.getpid()}-{threading.get_ident()}")
        try:
            draft.write_bytes(note)
            os.replace(draft, path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise

    def read(self, key: str) -> bytes | None:
        try:
            return (self._folder / key).read_bytes()
        except FileNotFoundError:
            return None

    def has(self, key: str) -> bool:
        return (self._folder / key).exists()

    def missing(self, keys: Sequence[str]) -> list[str]:
        try:
            names = set(os.listdir(self._folder))
        except FileNotFoundError:
            names = set()
        return [key for key in keys if key not in names]

    def forget_missing(self) -> None:
        forget_missing(self._folder)

    def claim(self, key: str) -> bool:
        self._folder.mkdir(exist_ok=True)
        try:
            os.close(os.open(self._folder / f"{key}.claim", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except FileExistsError:
            return False
        return True

    def drop(self, keys: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            for key in keys:
                (self._folder / key).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def is_closed(self) -> bool:
        return not self._folder.exists()


def post_again(board: Board, key: str, note: bytes) -> None:
    """Post a note for which others wait, a few times where an error may pass. OSError as of the last."""
    for attempt in attempts(RENAMES, RENAME_SECONDS):
        try:
            board.post(key, note)
        except OSError as error:
            if error.errno not in PASSING or attempt == RENAMES - 1:
                raise
        else:
            return
