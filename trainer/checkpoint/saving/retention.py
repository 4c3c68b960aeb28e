"""Which checkpoints of a run stay, and the deletion of the others; what is known to have been verified.

`verified.json` beside the checkpoints says which of them were read again whole, by which start, and when. It
says so of files as they were then: their names, sizes, times and inode numbers. Only deletion trusts it.
Whoever loads a checkpoint proves the bytes all the same.
"""

import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from common.files import write_atomically
from trainer.checkpoint import folder as folders
from trainer.checkpoint.pieces.files import digest
from trainer.folder.fence import Guard, unfenced
from trainer.ranks import one_line

RECORD = "verified.json"


class Retention:
    """Keeps the newest checkpoints that verify, and deletes older ones. For rank 0.

    root: the run's folder of checkpoints.
    keep: how many are kept; 0: all.
    keep_every: steps between checkpoints that are never deleted; 0: none.
    decays: steps after which the learning rate begins to fall. For each, the newest checkpoint that is not
        after it stays: from there the run can be made longer.
    record: (kind, step, reason) → writes an event.
    guard: raises where a later start of the run writes here.
    by: who verifies, in words, for the record.

    best: the step of the best evaluation, whose checkpoint stays until there is a better one; 0: none.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        keep_every: int,
        decays: Collection[int],
        record: Callable[[str, int, str], None],
        guard: Guard = unfenced,
        by: str = "1 rank",
    ) -> None:
        self.root = root
        self.keep = keep
        self.keep_every = keep_every
        self.decays = frozenset(decays)
        self._record = record
        self._guard = guard
        self._by = by
        self.best = 0
        self._known: dict[int, dict[str, str]] | None = None
        self._damaged: dict[int, str] = {}  # step → its stamp when it was found so

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of `step` is never deleted, however old it is."""
        return self.keep_every > 0 and step % self.keep_every == 0

    def unverified(self) -> list[int]:
        """Return the steps that have to verify before `apply` can delete what is older, newest first."""
        return [step for step, is_kept in self._walk() if is_kept is None]

    def apply(self) -> None:
        """Delete what need not stay. A failure is only an event."""
        step = 0
        try:
            for step, is_kept in self._walk(counts_unknown=False):
                if is_kept is False and not self.is_milestone(step) and step != self.best:
                    self._guard()
                    folders.delete(folders.step_folder(self.root, step))
        except (OSError, RuntimeError) as error:
            self._record("fault", step, f"could not delete an old checkpoint: {one_line(error)}")

    def note(self, step: int, stamp: str, reason: str = "") -> None:
        """Remember that the checkpoint of `step`, whose `stamp` was taken before it was read, verified, or
        what was wrong. A failure is only an event.
        """
        if not self.keep:
            return
        if reason:
            self._damaged[step] = stamp
            self._record("fault", step, f"not counted among the {self.keep} to keep: {reason}")
            return
        when = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            there = set(folders.steps(self.root))
            self._known = {known: entry for known, entry in self._verified().items() if known in there}
            self._known[step] = {"stamp": stamp, "by": self._by, "when": when}
            content: dict[str, Any] = {
                "verified": {str(known): self._known[known] for known in sorted(self._known)}
            }
            content["xxh3_128"] = digest(orjson.dumps(content))
            data = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            write_atomically(self.root / RECORD, data, guard=self._guard)
        except (OSError, RuntimeError) as error:  # the next start reads it again, that is all
            self._record("fault", step, f"could not note that it verified: {one_line(error)}")

    def is_verified(self, step: int) -> bool:
        """Whether the checkpoint of `step` has verified, and its files are as they were then."""
        entry = self._verified().get(step)
        return entry is not None and entry["stamp"] == self.stamp(step)

    def stamp(self, step: int) -> str:
        """Hash names, sizes, times and inode numbers of a checkpoint's files: another where one changed."""
        found = [(entry.name, entry.stat()) for entry in os.scandir(folders.step_folder(self.root, step))]
        return digest(
            orjson.dumps([(n, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in sorted(found)])
        )

    def _walk(self, *, counts_unknown: bool = True) -> list[tuple[int, bool | None]]:
        """(step, whether it counts as one to keep), newest first; None: it would, if it verified. Of damaged
        ones there is no entry: they are neither counted nor deleted.
        """
        kept, decays = 0, set(self.decays)
        found: list[tuple[int, bool | None]] = []
        for step in folders.steps(self.root) if self.keep else ():
            before = {decay for decay in decays if step <= decay}
            if kept >= self.keep and not before:
                found.append((step, False))
                continue
            verified = self.is_verified(step)
            if not verified and self._damaged.get(step) == self.stamp(step):
                continue
            if verified or counts_unknown:
                kept += 1
                decays -= before
            found.append((step, True if verified else None))
        return found

    def _verified(self) -> dict[int, dict[str, str]]:
        """Return what this start and earlier ones noted; nothing where the record is not as written."""
        if self._known is None:
            try:
                content = orjson.loads((self.root / RECORD).read_bytes())
                own = content.pop("xxh3_128")
                known = content["verified"] if own == digest(orjson.dumps(content)) else {}
                self._known = {
                    int(step): {name: str(entry[name]) for name in ("stamp", "by", "when")}
                    for step, entry in known.items()
                }
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                self._known = {}
        return self._known
