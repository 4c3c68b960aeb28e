"""Which checkpoints of a run stay, and the deletion of the others."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from trainer.checkpoint import folder as folders
from trainer.folder.fence import Guard, unfenced
from trainer.ranks import one_line


class Retention:
    """Keeps the newest checkpoints that verify, and deletes older ones.

    root: the run's folder of checkpoints.
    keep: how many are kept; 0: all.
    keep_every: steps between checkpoints that are never deleted; 0: none.
    decays: steps after which the learning rate begins to fall. For each, the newest checkpoint that is not
        after it stays: from there the run can be made longer.
    record: (kind, step, reason) → writes an event.
    guard: raises where a later start of the run writes here.

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
    ) -> None:
        self.root = root
        self.keep = keep
        self.keep_every = keep_every
        self.decays = frozenset(decays)
        self._record = record
        self._guard = guard
        self.best = 0
        self._verified: dict[int, tuple[tuple[str, int, int, int, int], ...]] = {}

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of `step` is never deleted, however old it is."""
        return self.keep_every > 0 and step % self.keep_every == 0

    def apply(self) -> None:
        """Delete what need not stay. A failure is only an event."""
        kept, step, decays = 0, 0, set(self.decays)
        try:
            for step in folders.steps(self.root) if self.keep else ():
                before = {decay for decay in decays if step <= decay}
                if kept < self.keep or before:
                    if self._sound(step):
                        kept += 1
                        decays -= before
                elif not self.is_milestone(step) and step != self.best:
                    self._guard()
                    folders.delete(folders.step_folder(self.root, step))
        except (OSError, RuntimeError) as error:
            self._record("fault", step, f"could not delete an old checkpoint: {one_line(error)}")

    def _sound(self, step: int) -> bool:
        """Whether the checkpoint verifies. It is read again only when its files changed since it last did."""
        at = folders.step_folder(self.root, step)
        stats = sorted((entry.name, entry.stat()) for entry in os.scandir(at))
        stamp = tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)
        if self._verified.get(step) == stamp:
            return True
        try:
            folders.verify(at)
        except RuntimeError as error:
            self._record("fault", step, f"not counted among the {self.keep} to keep: {error}")
            return False
        self._verified[step] = stamp
        return True
