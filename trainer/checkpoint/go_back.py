"""Going back to an older checkpoint, where no step can be made from the newest.

A checkpoint whose tensors are finite may still be of no use: the loss or the gradient of its next step is not
finite. A run that was resumed from such a checkpoint would fail at every start.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from parallel.engine import Engine
from trainer.checkpoint import folder as folders
from trainer.checkpoint.folder import DIVERGED
from trainer.checkpoint.pieces.files import DamagedError
from trainer.checkpoint.resume import load_state
from trainer.folder.fence import Guard, unfenced
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.state import Identity, TrainState


def go_back(
    root: Path,
    engine: Engine,
    *,
    resumed: int,
    why: str,
    allows_a_step: Callable[[TrainState], bool],
    identity: Callable[[int], Identity],
    events: EventLog,
    ranks: Ranks,
    guard: Guard = unfenced,
) -> bool:
    """Find the newest older checkpoint under `root` from which a step can be made, and set the newer ones
    aside, so that a resume takes that one. Return False where there is none. Collective.

    Until one is found nothing in the run folder changes: a run that is killed meanwhile finds what was there.

    resumed: step of the checkpoint that this start was resumed from; -1 where the run is new.
    why: no step can be made from that checkpoint.
    allows_a_step: whether a step can be made from a state which the engine holds, by making it.
    identity, events, guard: as of `Checkpointer`.

    RuntimeError, one line, where the run has gone back from `resumed` before and has come to it again with
    the settings that it has now: it would only do so once more.
    """
    steps = ranks.on_rank_zero(lambda: folders.steps(root))
    if resumed < 0:
        return False
    ranks.on_rank_zero(lambda: check_not_in_a_circle(folders.step_folder(root, resumed), identity, why))
    failed = [step for step in steps if step >= resumed]
    for step in (step for step in steps if step < resumed):
        at = folders.step_folder(root, step)
        try:
            document = load_state(at, engine, identity, ranks, proves=True)
        except DamagedError:  # the resume that follows reports it and sets it aside
            continue
        if allows_a_step(TrainState.from_json(document["state"])):
            break
        failed.append(step)
    else:
        return False
    reason = f"no step can be made from this checkpoint ({why}): went back to step {step}"
    ranks.on_rank_zero(lambda: _set_aside(root, resumed, failed, reason, events, guard))
    return True


def check_not_in_a_circle(at: Path, identity: Callable[[int], Identity], why: str) -> None:
    """RuntimeError, one line, where the run has gone back from this step before: no step can be made from the
    checkpoint `at` (`why`), nor could one from an earlier checkpoint of the same step, and all settings are
    as they were when `at` was saved.

    Not where `at` was deleted as old since: steps that are skipped, without an update, are saved too.
    """
    if not folders.has_diverged_before(at) or not at.exists():
        return
    document = json.loads((at / folders.STATE).read_bytes())
    if not identity(document["state"]["sequences"]).changes(document["identity"]):
        raise RuntimeError(
            f"{why}; {at} was made anew from an older checkpoint with the same settings, and ends the same "
            "way: change one, and the run goes back again"
        )


def _set_aside(
    root: Path, resumed: int, failed: Sequence[int], reason: str, events: EventLog, guard: Guard
) -> None:
    """The newest first: killed in between, the run finds the same to do again with fewer."""
    guard()
    names = [folders.aside(folders.step_folder(root, step), DIVERGED).name for step in failed]
    events.event("fault", resumed, reason, set_aside=names)
    for step in failed:
        folders.set_aside(folders.step_folder(root, step), DIVERGED)
