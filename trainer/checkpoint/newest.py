"""Which of a run's checkpoints to read: the newest that verifies. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import folder as folders
from trainer.checkpoint.pieces.files import is_away
from trainer.ranks import Ranks


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies.

    step: its step; None where no checkpoint verifies.
    passed_over: (step, reason) of each newer checkpoint that does not verify, newest first.
    """

    step: int | None
    passed_over: list[tuple[int, str]]


def newest(root: Path, ranks: Ranks | None = None) -> Found:
    """Find the newest checkpoint under `root` that verifies. Collective where there are `ranks`: they share
    the reading, and all return the same. Raises as `damage`.
    """
    ranks = ranks or Ranks()
    passed_over: list[tuple[int, str]] = []
    for step in ranks.on_rank_zero(lambda: folders.steps(root)):
        reason = damage(folders.step_folder(root, step), ranks)
        if not reason:
            return Found(step, passed_over)
        passed_over.append((step, reason))
    return Found(None, passed_over)


def damage(folder: Path, ranks: Ranks) -> str:
    """Return what is wrong with a checkpoint, on every rank the same; "" where it verifies. Collective: each
    rank reads its share of the files.

    RuntimeError, one line, where a file server did not answer: the checkpoint may be whole, and an older one
    is not what was asked for.
    """

    def look() -> str:
        try:
            folders.verify(folder, share=(ranks.rank, ranks.world))
        except RuntimeError as error:
            if is_away(error):
                raise RuntimeError(f"{error}: the same command tries again") from None
            return str(error)
        return ""

    found = ranks.first(ranks.together(look) or None)
    return found[1] if found else ""
