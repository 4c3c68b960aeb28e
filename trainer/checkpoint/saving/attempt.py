"""One attempt of all ranks at a save, coordinated by notes (`board`), so that background threads can do it.

Each rank writes its files into `.tmp-step-…-NONCE` and posts its part. Rank 0 commits when all parts are
there, and posts its verdict, for which the others wait. A rank that fails posts the reason, which ends the
attempt on every rank. The nonce belongs to one attempt of one start of one run: what a dead attempt left can
never be taken for this one's. A rank that a later start has fenced off (`trainer.folder.fence`) makes no
folder, posts no part and commits nothing.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from common.files import write_durably
from common.retry import comes_again, repeats
from trainer.checkpoint.folder import PASSING, TMP, commit, step_folder
from trainer.checkpoint.merge import Part, Table, decode_table, encode_table
from trainer.checkpoint.pieces.files import FileEntry, digest
from trainer.checkpoint.saving.board import Board, post_again
from trainer.folder.fence import Guard
from trainer.ranks import IN_EVENTS, one_line

POLL_SECONDS = (0.001, 0.1)  # first and longest pause between two looks at the board
POLLS_A_SECOND = 1000  # of all ranks together: more ranks look less often
LONGEST_SECONDS = 2.0
GUARDS_A_SECOND = 100  # likewise looks at the fence, a file that all ranks read
ASK_SECONDS = 1.0  # for so long a client of a network file system may answer by what it remembers


class RankIsGoneError(RuntimeError):
    """A save cannot be committed because another rank has ended, which has a line and an event of its own."""


class ToldError(RuntimeError):
    """Another rank failed, by its note; `again`: its error may pass, or all ranks are to try again."""

    def __init__(self, note: dict[str, Any]) -> None:
        super().__init__(note["failed"])
        self.again = note["again"]
        if note.get("repeats"):
            repeats(self)


def nobody() -> None:
    """No other rank has ended."""


def longest_pause(world: int) -> float:
    """Return the longest pause in seconds between two looks of one rank."""
    return max(POLL_SECONDS[1], min(LONGEST_SECONDS, world / POLLS_A_SECOND))


def guard_pause(world: int) -> float:
    """Return the seconds between two looks of one rank at the fence while it waits."""
    return max(POLL_SECONDS[1], world / GUARDS_A_SECOND)


class Attempt:
    """One attempt at a save.

    root: the run's folder of checkpoints.
    step: the step that is saved.
    nonce: of this attempt, the same on all ranks.
    rank, world: this rank among those that save.
    patience: seconds that rank 0 waits for the others.
    board: the ranks' notes.
    guard: raises where a later start of the run writes here, and so does every method but `fail`.
    gone: returns the first rank that has ended without the others, if there is one.
    """

    def __init__(
        self,
        root: Path,
        step: int,
        nonce: str,
        *,
        rank: int,
        world: int,
        patience: float,
        board: Board,
        guard: Guard,
        gone: Callable[[], object] = nobody,
    ) -> None:
        self.step = step
        self.final = step_folder(root, step)
        self.tmp = root / f"{TMP}{self.final.name}-{nonce}"
        self.rank = rank
        self.world = world
        self.patience_seconds = patience
        self.board = board
        self.guard = guard
        self.gone = gone
        self._nonce = nonce

    def begin(self) -> Path:
        """Make the folder that this rank writes its files into, and return it."""
        self.guard()
        self.tmp.mkdir(exist_ok=True)
        return self.tmp

    def publish(self, part: Part) -> None:
        """Post that all of this rank's files are on disk. The note itself need not survive a power cut."""
        self.guard()
        for share in part.shares:
            key = f"table-{share.digest}"
            # The claim is of this attempt: who claimed the table in another may have failed to post it.
            if not self.board.has(key) and self.board.claim(f"{self._nonce}-{key}"):
                self.board.post(key, encode_table(share.table))
        self.board.post(self._key("part", self.rank), orjson.dumps(part.to_json()))

    def await_others(self) -> None:
        """Rank 0: wait until all others have published. RuntimeError as of `finish`."""
        self._await_parts(range(1, self.world))

    def finish(self, sequences: int, then: Callable[[], list[int]] = list) -> tuple[int, list[int]]:
        """Rank 0: wait for all parts and commit. Others: wait for rank 0's verdict. Return the checkpoint's
        bytes, 0 on the others, and what `then` returned on rank 0 after the commit.

        RuntimeError where a rank failed, or did not answer in time.
        """
        if self.rank:
            # Twice as long as rank 0, whose error names the ranks that are missing.
            verdict = self._poll(self._verdict, lambda: "rank 0 did not commit", 2 * self.patience_seconds)
            if "failed" in verdict:
                raise ToldError(verdict)
            return 0, verdict["then"]
        self._await_parts(range(self.world))
        keys = [self._key("part", rank) for rank in range(self.world)]
        table = cache(self._table)
        parts = [Part.from_json(orjson.loads(self.board.read(key) or b""), table) for key in keys]
        commit(self.tmp, self.final, parts, step=self.step, sequences=sequences, guard=self.guard)
        steps = then()
        if self.world > 1:
            self._tell_committed(orjson.dumps({"then": steps}))
        self.board.drop(keys)
        return sum(entry.bytes for part in parts for entry in part.files.values()), steps

    def _tell_committed(self, note: bytes) -> None:
        """Post the verdict. What fails here must not begin another attempt: the checkpoint is there."""
        try:
            post_again(self.board, self._key("verdict"), note)
        except OSError as error:
            told = f"{self.final} is whole, but the other ranks could not be told: {one_line(error)}"
            raise RuntimeError(told) from None

    def fail(self, error: Exception, *, is_last: bool = True) -> bool:
        """Remove this rank's files and leave the reason to the others. Return whether all ranks are to make
        another attempt: rank 0 decides where the error may pass, unless this is the last. Never raises: the
        disk may have failed.
        """
        with contextlib.suppress(OSError):
            for path in self.tmp.glob(f"rank-{self.rank:05d}*"):
                path.unlink()
        if isinstance(error, ToldError):
            reason, again = str(error), error.again
            if self.rank:
                return again
        else:
            reason, again = f"rank {self.rank}: {one_line(error)}", may_pass(error)
        note = {"failed": reason, "again": again, "repeats": comes_again(error)}
        if self.rank:
            self._tell("failed", note)
            return again and self._is_repeated()
        again = again and not is_last
        return self._tell("verdict", note | {"again": again}) and again

    def remove(self) -> None:
        """Rank 0: remove what is left of a failed attempt."""
        shutil.rmtree(self.tmp, ignore_errors=True)

    def take_down(self) -> None:
        """Rank 0: take down what was told of this attempt. Only once all ranks have posted their part of a
        later one, for then they have read it.
        """
        self.board.drop([self._key("verdict"), self._key("failed")])

    def _is_repeated(self) -> bool:
        """Whether rank 0's verdict on this rank's failure is another attempt."""
        try:
            verdict = self._poll(self._verdict, lambda: "rank 0 gave no verdict", self.patience_seconds)
        except (RuntimeError, OSError):
            return False
        return bool(verdict.get("again"))

    def _tell(self, kind: str, failed: dict[str, Any]) -> bool:
        """Post why this attempt failed. Return whether the note has all of it: a full disk may have room for
        an empty one.
        """
        for note in (orjson.dumps(failed), b""):
            with contextlib.suppress(OSError, RuntimeError):
                self.board.post(self._key(kind), note)
                return bool(note)
        return False

    def _key(self, kind: str, rank: int | None = None) -> str:
        return f"{self._nonce}-{self.step}-{kind}" + ("" if rank is None else f"-{rank:05d}")

    def _table(self, key: str) -> Table:
        note = self.board.read(f"table-{key}")
        assert note is not None, f"a part without its table {key}"
        return decode_table(note)

    def _await_parts(self, ranks: range) -> None:
        keys = [self._key("part", rank) for rank in ranks]

        def all_there() -> dict[str, Any] | None:
            if told := self._note("failed"):
                raise ToldError(told)
            return None if self.board.missing(keys) else {}

        def otherwise() -> str:
            missing = set(self.board.missing(keys))
            late = [rank for rank, key in zip(ranks, keys, strict=True) if key in missing]
            within = f"within {self.patience_seconds:g} s"
            return f"not all ranks wrote their part {within} (no part from ranks {late})"

        if keys:
            self._poll(all_there, otherwise, self.patience_seconds)

    def _note(self, kind: str) -> dict[str, Any] | None:
        note = self.board.read(self._key(kind))
        if note is None:
            return None
        return dict(orjson.loads(note or b'{"failed": "a rank had no space to say why", "again": false}'))

    def _verdict(self) -> dict[str, Any] | None:
        if found := self._note("verdict"):
            return found
        # Rank 0 may have ended in order since, and taken its notes down. The checkpoint alone does not say
        # so: it is there before the verdict.
        return {"then": []} if self.board.is_closed() and self.final.exists() else None

    def _poll(
        self, look: Callable[[], dict[str, Any] | None], otherwise: Callable[[], str], patience: float
    ) -> dict[str, Any]:
        pause, longest = POLL_SECONDS[0], longest_pause(self.world)
        guarded, asked = -math.inf, time.monotonic()
        deadline = asked + patience
        while True:
            try:
                if (found := look()) is not None:
                    return found
                if time.monotonic() - guarded >= guard_pause(self.world):
                    self.guard()  # a rank that was left behind waits for a rank 0 that is gone
                    guarded = time.monotonic()
                if time.monotonic() - asked >= max(ASK_SECONDS, guard_pause(self.world)):
                    self.board.forget_missing()
                    asked = time.monotonic()
            except (OSError, RuntimeError) as error:
                self._check_present()  # where the notes are gone with rank 0, say that
                if not may_pass(error):
                    raise
            self._check_present()
            if time.monotonic() > deadline:
                raise RuntimeError(otherwise())
            time.sleep(pause)
            pause = min(longest, pause * 1.5)

    def _check_present(self) -> None:
        if (left := self.gone()) is not None:
            raise RankIsGoneError(f"checkpoint of step {self.step} was not saved: {left}")


def may_pass(error: Exception) -> bool:
    """Whether the same write may succeed a moment later."""
    while not isinstance(error, OSError) or error.errno is None:
        if not isinstance(error.__cause__, Exception):
            return False
        error = error.__cause__
    return error.errno in PASSING


def write_json(path: Path, document: dict[str, Any]) -> FileEntry:
    """Write a document as a file of the checkpoint; return its entry in the manifest."""
    data = (json.dumps(document, indent=1) + "\n").encode()
    write_durably(path, data)
    return FileEntry(len(data), digest(data))


def not_saved(error: Exception, step: int, rank: int, world: int) -> Exception:
    """Return a save's error as the user should see it; a bug keeps its own type and traceback."""
    if not isinstance(error, OSError | RuntimeError):
        return error
    where = f" on rank {rank}" if world > 1 and isinstance(error, OSError) else ""
    raised = RuntimeError(f"checkpoint of step {step} was not saved{where}: {one_line(error)}")
    raised.__cause__ = error
    raised.add_note(IN_EVENTS)
    return repeats(raised) if comes_again(error) else raised
