"""One look a node: the ranks of a host share what one of them has seen on the board.

Thousands of ranks wait for the same verdict on a save. On a shared file system each look is a question to the
file server, so the ranks of a host take turns, and who finds the note copies it to the host's own temporary
folder, where the others find it.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint.folder import TMP
from trainer.checkpoint.saving.board import Board, FolderBoard, OwnBoard
from trainer.ranks import Ranks

KEPT_SECONDS = 3600.0  # a copy that is older has been read by all, or its start is over


def board_of(root: Path, ranks: Ranks, name: str, pause: float) -> Board:
    """Return this rank's view of the notes beside the checkpoints in `root`.

    name: this start's own.
    pause: seconds between two looks of a host.
    """
    folder = root / f"{TMP}notes-{name}"
    if ranks.world == 1:
        return OwnBoard()
    return NearBoard(folder, pause=pause, near=of_this_host()) if ranks.rank else FolderBoard(folder)


def of_this_host() -> Path:
    """Return the folder for copies of notes: of this user alone, for a forged verdict could end a save.

    Not by `tempfile.gettempdir`: on a full disk it answers with the working directory, or raises; and TMPDIR
    may be on the shared file system.
    """
    return Path("/tmp") / f"germinal-notes-{os.getuid()}"


class NearBoard(FolderBoard):
    """The board of a rank that waits for notes of rank 0. Where the host's folder is of no use, because it is
    full or another user's, every look is the rank's own.

    folder: that all ranks see.
    pause: the longest between two looks of a host, in seconds; half as long as a rank has waited, at first.
    near: the host's folder; made when needed.
    """

    def __init__(
        self, folder: Path, *, pause: float, near: Path, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(folder)
        self._pause, self._near, self._now = pause, near, now
        self._looked = False  # this rank itself, the last time
        self._waits = ("", 0.0)  # for which note, since when

    def read(self, key: str) -> bytes | None:
        copy = self._near / key
        with contextlib.suppress(OSError):
            if self._is_ours():
                return copy.read_bytes()
        if self._waits[0] != key:
            self._waits = (key, self._now())
        self._looked = self._has_turn(key)
        if not self._looked:
            return None
        note = super().read(key)
        if note is not None:
            self._keep(copy, note)
        return note

    def is_closed(self) -> bool:
        return self._looked and super().is_closed()

    def _has_turn(self, key: str) -> bool:
        """Whether no rank of this host has looked within the pause; then it is this rank that looks."""
        mark = self._near / f"{key}.looked"
        pause = min(self._pause, (self._now() - self._waits[1]) / 2)
        try:
            self._near.mkdir(mode=0o700, exist_ok=True)
            if not self._is_ours():
                return True
            with contextlib.suppress(FileNotFoundError):
                if 0 <= self._now() - mark.stat().st_mtime < pause:
                    return False
            with mark.open("wb"):
                now = self._now()
                os.utime(mark, (now, now))
        except OSError:
            pass
        return True

    def _keep(self, copy: Path, note: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                # Containers of one host may share this folder and number their processes alike.
                draft = copy.with_name(f"{copy.name}.draft-{secrets.token_hex(8)}")
                draft.write_bytes(note)
                os.replace(draft, copy)
                self._forget_old()

    def _forget_old(self) -> None:
        for entry in os.scandir(self._near):
            if self._now() - entry.stat().st_mtime > KEPT_SECONDS:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry)

    def _is_ours(self) -> bool:
        status = self._near.lstat()
        return self._near.is_dir() and not self._near.is_symlink() and status.st_uid == os.getuid()
