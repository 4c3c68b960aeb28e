"""Loading the newest checkpoint that verifies, and reporting what changed since it was saved."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from parallel.engine import Engine
from trainer.checkpoint import folder as folders
from trainer.checkpoint.loading import load_and_prove
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.pieces.files import DamagedError, is_away
from trainer.checkpoint.saving.retention import Retention
from trainer.checkpoint.store import check_no_extra, load
from trainer.folder.fence import Guard, unfenced
from trainer.folder.run_folder import EVENTS
from trainer.optim.schedule import decay_begins, decay_from, jump, of_settings
from trainer.ranks import Ranks, on_every_rank
from trainer.record.events import EventLog, read_events
from trainer.record.shared_log import Digest, differences
from trainer.state import Identity, TrainState

T = TypeVar("T")


def resume(
    root: Path,
    engine: Engine,
    *,
    identity: Callable[[int], Identity],
    events: EventLog,
    logs: Mapping[str, Digest],
    layout: str = "",
    ranks: Ranks,
    guard: Guard = unfenced,
    retention: Retention | None = None,
) -> TrainState | None:
    """Load the newest checkpoint under `root` that verifies into the engine; return its state, or None where
    there is none. Collective.

    Bytes are proven while they are loaded, in one pass. A checkpoint that does not verify is passed over with
    an event, and set aside under another name so that its step can be saved anew.

    identity, events, layout, ranks, guard: as of `Checkpointer`.
    logs: by name; rank 0's then begin with the lines that the checkpoint noted.
    retention: rank 0's knows what has verified, and remembers that the loaded one did.

    RuntimeError where the run's checkpoints are gone or none verifies (all is left as it is: to begin anew
    would erase the run's record), the corpus changed or a tensor does not fit; ValueError
    where the config describes another run (model, seed).
    """
    step, document, rejected = _newest(root, engine, identity, ranks, retention)
    if step is None:
        ranks.on_rank_zero(lambda: check_never_saved(root))
        return None
    lost = ranks.on_rank_zero(lambda: differences(document.get("logs", {}), logs, step))
    ranks.on_rank_zero(lambda: _set_aside(root, rejected, step, events, guard))
    now, before = identity(document["state"]["sequences"]), document["identity"]
    changed = now.changes(before)
    # A checkpoint that is older than the field has no layout.
    for name, then, here in (
        ("ranks", document["world"], ranks.world),
        ("layout", document.get("layout", ""), layout),
    ):
        if then and then != here:
            changed.append(f"{name} {then} → {here}")
    why = f"passed over {len(rejected)} damaged" if rejected else "newest checkpoint, verified"
    if changed:
        why += f"; not as it was: {', '.join(changed)}"
    events.event(
        "resume",
        step,
        why,
        ranks=ranks.world,
        saved_by_ranks=document["world"],
        **({"changed": changed} if changed else {}),
    )
    for what in lost:
        events.event("fault", step, what)
    if jumps := _rate_jumps(root, step, now.settings, before.get("settings") or {}):
        events.event("schedule", step, jumps)
    return TrainState.from_json(document["state"])


def check_never_saved(root: Path) -> None:
    """RuntimeError, one line, where the run's events report a save, and `root` holds no checkpoint: to begin
    anew would erase the run's record.

    A start at step 0 gives up what was saved before it, and so does a newest checkpoint that was set aside.
    """
    saved = 0
    for event in read_events(root.parent / EVENTS):
        if event["kind"] in ("save", "resume") and isinstance(event.get("step"), int):
            saved = event["step"]
        elif event["kind"] == "start" and event.get("step") == 0:
            saved = 0
    if saved and not any(root.glob(f"{folders.step_folder(root, saved).name}.*")):
        raise RuntimeError(
            f"{root} holds no checkpoint, but this run has saved step {saved}: put its checkpoints back (is "
            f"their disk mounted?), or for a new run give another name or move {root.parent} away"
        )


def _rate_jumps(root: Path, step: int, now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Return the event of a resume with another schedule, where the learning rate jumps; "" where it does
    not.
    """
    rates = jump(step, now, then)
    if rates is None:
        return ""
    last, following = rates
    text = f"the learning rate was {last:g} at step {step}, and is {following:g} at step {step + 1}"
    begins, began = decay_begins(*of_settings(then)), decay_begins(*of_settings(now))
    if following < last and 0 < began < step and not 0 < begins < step:
        steps, fraction = decay_from(step, *of_settings(now))
        ways = f"train.steps={steps}" + (f" or optim.decay_fraction={fraction}" if fraction else "")
        return f"{text}, for the decay began after step {began}: with {ways} it begins here"
    if not begins or following <= last:
        return text
    earlier = [kept for kept in folders.steps(root) if kept <= begins]
    if not earlier:
        return f"{text}; no checkpoint is left from before the decay, which began after step {begins}"
    return (
        f"{text}; to go on from before the decay instead, copy the run folder, remove the checkpoints after "
        f"{folders.step_folder(root, earlier[0]).name} in the copy, and train the copy"
    )


def _newest(
    root: Path,
    engine: Engine,
    identity: Callable[[int], Identity],
    ranks: Ranks,
    retention: Retention | None,
) -> tuple[int | None, dict[str, Any], list[tuple[int, str]]]:
    """Fill the engine from the newest checkpoint that verifies. Return its step, or None; the content of its
    state.json; and (step, reason) of each newer one. Collective.
    """
    steps = ranks.on_rank_zero(lambda: folders.steps(root))
    rejected: list[tuple[int, str]] = []
    for step in steps:
        at = folders.step_folder(root, step)
        stamp = ranks.on_rank_zero(partial(retention.stamp, step)) if retention else ""
        try:
            document = load_state(at, engine, identity, ranks, proves=True)
        except DamagedError as error:
            rejected.append((step, str(error)))
            continue
        if retention is not None and ranks.rank == 0:
            retention.note(step, stamp)
        return step, document, rejected
    if rejected:
        raise on_every_rank(
            RuntimeError(
                f"no checkpoint of this run verifies: {rejected[0][1]}: restore one, or for a new run give "
                f"another name or move {root.parent} away"
            )
        )
    return None, {}, []


def load_state(
    at: Path, engine: Engine, identity: Callable[[int], Identity], ranks: Ranks, *, proves: bool = False
) -> dict[str, Any]:
    """Fill the engine from the checkpoint `at`; return the content of its state.json. Collective; raises as
    `resume` does.

    proves: the checkpoint is not known to verify. Prove every byte, each once, while it is loaded.
        DamagedError on every rank where one finds damage.
    """
    manifest, document = _on_no_damage(ranks, lambda: _read_state(at, identity))
    chunks = engine.chunks()
    owned = ranks.sum(sum(chunk.tensor.numel() for chunk in chunks if chunk.owned))
    if owned != manifest.elements:  # only then do the ranks exchange their names
        names = ranks.each_once(sorted({chunk.name for chunk in chunks}))
        ranks.together(lambda: check_no_extra(at, manifest, (name for each in names for name in each)))

    def fill() -> None:
        if proves:
            load_and_prove(at, chunks, manifest, manifest.files.share_of(ranks.rank, ranks.world))
        else:
            load(at, chunks, manifest)

    _on_no_damage(ranks, fill)
    engine.load(document["scalars"])
    return document


def _on_no_damage(ranks: Ranks, action: Callable[[], T]) -> T:
    """As `Ranks.together`; but where any rank finds damage, DamagedError with its reason on every rank.
    RuntimeError where a file server did not answer: the checkpoint may be whole.
    """

    def outcome() -> tuple[T | None, str]:
        try:
            return action(), ""
        except DamagedError as error:
            if is_away(error):
                raise RuntimeError(f"{error}: the same command tries again") from None
            return None, str(error)

    result, reason = ranks.together(outcome)
    if damaged := ranks.first(reason or None):
        raise on_every_rank(DamagedError(damaged[1]))
    return result  # type: ignore[return-value]


def _read_state(at: Path, identity: Callable[[int], Identity]) -> tuple[Manifest, dict[str, Any]]:
    manifest = folders.manifest_of(at)
    folders.check_file(at, folders.STATE, manifest.files[folders.STATE])
    document = json.loads((at / folders.STATE).read_bytes())
    state = TrainState.from_json(document["state"])
    now, before = identity(state.sequences), document["identity"]
    now.check_stages(state, before, str(at))  # first: a stage that was moved is another stream, too
    now.check(before, str(at))
    return manifest, document


def _set_aside(
    root: Path, rejected: Sequence[tuple[int, str]], step: int, events: EventLog, guard: Guard
) -> None:
    for bad, reason in rejected:
        guard()
        at = folders.step_folder(root, bad)
        events.event("fault", bad, f"{reason}; went on from step {step}", set_aside=folders.aside(at).name)
        folders.set_aside(at)
