"""One save by many ranks, coordinated through its folder alone, so that a background thread can do it.

Each rank writes its files into `.tmp-step-…-NONCE` and then publishes its part by a rename. Rank 0 commits
when all parts are there. A rank that fails leaves a marker with its reason, which ends the attempt on every
rank. The nonce belongs to one start of one run: what a dead attempt left can never be taken for this one's.
A rank that a later start has fenced off (`trainer.folder.fence`) makes no folder, publishes nothing and
commits nothing.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import write_durably
from trainer.checkpoint.folder import TMP, commit, step_folder
from trainer.checkpoint.manifest import FileEntry, Part, digest
from trainer.folder.fence import Guard
from trainer.ranks import IN_EVENTS, one_line

POLL_SECONDS = (0.001, 0.1)  # first and longest pause between two looks at the folder


class RankIsGoneError(RuntimeError):
    """A save cannot be committed because another rank has ended, which has a line and an event of its own."""


def nobody() -> None:
    """No other rank has ended."""


class Attempt:
    """One save.

    root: the run's folder of checkpoints.
    step: the step that is saved.
    nonce: of this start of the run, the same on all ranks.
    rank, world: this rank among those that save.
    patience: seconds that rank 0 waits for the others.
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
        guard: Guard,
        gone: Callable[[], object] = nobody,
    ) -> None:
        self.step = step
        self.final = step_folder(root, step)
        self.tmp = root / f"{TMP}{self.final.name}-{nonce}"
        self.rank = rank
        self.world = world
        self.patience_seconds = patience
        self.guard = guard
        self.gone = gone

    def begin(self) -> Path:
        """Make the folder that this rank writes its files into, and return it."""
        self.guard()
        self.tmp.mkdir(exist_ok=True)
        return self.tmp

    def publish(self, part: Part) -> None:
        """Publish that all of this rank's files are on disk. The note itself need not survive a power cut."""
        draft = self._name("part.json.draft")
        draft.write_text(json.dumps(part.to_json()))
        self.guard()
        os.replace(draft, self._name("part.json"))

    def await_others(self) -> None:
        """Rank 0: wait until all others have published. RuntimeError as of `finish`."""
        self._poll(
            lambda names: self._all_published({*names, self._name("part.json").name}),
            "not all ranks wrote their part",
            self.patience_seconds,
        )

    def finish(self, sequences: int) -> int:
        """Rank 0: wait for all parts and commit; return the checkpoint's bytes. Others: wait for the commit;
        return 0.

        RuntimeError where a rank failed, or did not answer in time.
        """
        if self.rank:
            # Twice as long as rank 0, whose error names the ranks that are missing.
            self._poll(self._committed, "rank 0 did not commit", 2 * self.patience_seconds)
            return 0
        self._poll(self._all_published, "not all ranks wrote their part", self.patience_seconds)
        parts = []
        for rank in range(self.world):
            path = self._name("part.json", rank)
            parts.append(Part.from_json(json.loads(path.read_bytes())))
            path.unlink()
        commit(self.tmp, self.final, parts, step=self.step, sequences=sequences, guard=self.guard)
        return sum(entry.bytes for part in parts for entry in part.files.values())

    def fail(self, reason: str) -> None:
        """Remove this rank's files and leave the reason to the others. Never raises: the disk may have
        failed.
        """
        with contextlib.suppress(OSError):
            for path in self.tmp.glob(f"rank-{self.rank:05d}*"):
                path.unlink()
        with contextlib.suppress(OSError):
            if any(self.tmp.glob("*.failed")):
                return  # the first reason is the one to report
            marker, draft = self._name("failed"), self._name("failed.draft")
            try:
                draft.write_text(reason)
                os.replace(draft, marker)
            except OSError:
                marker.touch()

    def _name(self, suffix: str, rank: int | None = None) -> Path:
        return self.tmp / f"rank-{self.rank if rank is None else rank:05d}.{suffix}"

    def _all_published(self, names: set[str]) -> bool:
        return all(self._name("part.json", rank).name in names for rank in range(self.world))

    def _committed(self, names: set[str]) -> bool:
        return not self.tmp.exists() and self.final.exists()

    def _poll(self, done: Callable[[set[str]], bool], otherwise: str, patience: float) -> None:
        pause, longest = POLL_SECONDS
        deadline = time.monotonic() + patience
        while True:
            try:
                names = set(os.listdir(self.tmp))
            except FileNotFoundError:
                names = set()
            if failed := sorted(name for name in names if name.endswith(".failed")):
                reason = (self.tmp / failed[0]).read_text(errors="replace") or "no space to say why"
                raise RuntimeError(f"rank {int(failed[0][5:10])}: {reason}")
            if done(names):
                return
            self.guard()  # a rank that was left behind waits for a rank 0 that is gone
            if (left := self.gone()) is not None:
                raise RankIsGoneError(f"checkpoint of step {self.step} was not saved: {left}")
            if time.monotonic() > deadline:
                others = (rank for rank in range(self.world) if rank != self.rank)
                missing = [rank for rank in others if self._name("part.json", rank).name not in names]
                raise RuntimeError(f"{otherwise} within {patience:g} s (no part from ranks {missing})")
            time.sleep(pause)
            pause = min(longest, pause * 1.5)


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
    return raised
