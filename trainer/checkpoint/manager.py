"""The checkpoints of one run: when it saves, and what the loop and the run call. See `attempt` for one save
by many ranks, `resume` and `go_back` for loading.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parallel.engine import Engine
from trainer.checkpoint import folder as folders
from trainer.checkpoint.go_back import go_back
from trainer.checkpoint.resume import resume
from trainer.checkpoint.saving.attempt import Attempt, longest_pause, nobody
from trainer.checkpoint.saving.near import board_of
from trainer.checkpoint.saving.retention import Retention
from trainer.checkpoint.saving.save import Batches, Save, streamed
from trainer.checkpoint.saving.staging import Staging
from trainer.checkpoint.saving.verification import Verification
from trainer.folder.fence import Guard, unfenced
from trainer.process.disk import explaining
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.record.shared_log import digest_of
from trainer.record.sinks import JsonlLog, Known
from trainer.state import Identity, TrainState
from trainer.watch.phases import COPY, SAVE, WAIT, Phases

PATIENCE_SECONDS = 1800.0  # at least: a file system that is slower has a larger supervise.first_seconds


class Checkpointer:
    """Saves, keeps and resumes one run's checkpoints under `run_dir/checkpoints`.

    All ranks call every method in the same order, but for `due`, `folder` and `known`.

    every: steps between two saves; 0: save only when `save` is called.
    keep, keep_every, decays: which checkpoints stay: see `Retention`.
    asynchronous: copy the state, return, and write in the background.
    identity: position in the stream → what a checkpoint made there shares with the runs that may load it;
        what comes after the position may still change.
    events: the run's event log.
    logs: forced to disk before a checkpoint is, so that a resume finds every line up to the checkpoint's
        step; the checkpoint notes their length and hash.
    layout: the layout of the ranks, in words.
    ranks: this rank among all. Starting, resuming and going back use its collectives; a save uses notes.
    patience_seconds: how long a save waits for the other ranks' files.
    guard: raises where a later start of the run writes here.
    phases: told of the parts of a save.
    gone: returns the first rank that has ended without the others, if there is one: no save waits for it.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        every: int,
        keep: int,
        keep_every: int = 0,
        decays: Collection[int] = (),
        asynchronous: bool,
        identity: Callable[[int], Identity],
        events: EventLog,
        logs: Sequence[JsonlLog] = (),
        layout: str = "",
        ranks: Ranks | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        guard: Guard = unfenced,
        phases: Phases | None = None,
        gone: Callable[[], object] = nobody,
    ) -> None:
        self._phases = phases or Phases()
        self._layout = layout
        self.root = run_dir / "checkpoints"
        self.every = every
        self.asynchronous = asynchronous
        self.identity = identity
        self.events = events
        self.logs = (*logs, events)
        # An event log without a path drops its events.
        self._digests = {log.name: digest_of(log) for log in self.logs if log.name}
        self.ranks = ranks or Ranks()
        self.guard = guard
        self.retention = Retention(
            self.root,
            keep=keep,
            keep_every=keep_every,
            decays=decays,
            record=self._record,
            guard=guard,
            by=f"{self.ranks.world} rank{'s' * (self.ranks.world > 1)}",
        )
        self.stall_seconds = 0.0  # how long training stood still for the last save
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._saved = self._resumed = -1  # steps
        self._resumed_updates = -1
        self._nonce = self.ranks.on_rank_zero(self._open)
        self._board = board_of(self.root, self.ranks, self._nonce, longest_pause(self.ranks.world))
        self._save = self._make_save(patience_seconds, gone)
        self._verification = Verification(
            self.root,
            rank=self.ranks.rank,
            world=self.ranks.world,
            board=self._board,
            retention=self.retention,
            patience=patience_seconds,
            gone=gone,
        )

    def due(self, step: int) -> bool:
        """Whether a save is asked for after `step`."""
        return (self.every > 0 and step % self.every == 0) or self.retention.is_milestone(step)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return folders.step_folder(self.root, step)

    def keep_best(self, step: int) -> None:
        """From here on, keep the checkpoint of `step` as the best; 0: none is."""
        self.retention.best = step

    def save(self, state: TrainState, engine: Engine, *, reason: str = "", is_last: bool = False) -> None:
        """Save `state.step`: in the background where saving is asynchronous, else until it is committed.
        State on a disk is streamed from there without a copy in memory: training waits until that is done.

        is_last: no later save will have the rest verified: this one does, behind what is under way.

        First waits for the save in flight, and raises what went wrong with it. Saving the same step again
        does nothing. RuntimeError, one line, where some rank could not write; earlier checkpoints stay as
        they were.
        """
        step = state.step
        if step == self._saved:
            return
        begin = time.monotonic()
        self.wait()
        final = folders.step_folder(self.root, step)
        if final.exists():
            raise RuntimeError(
                f"{final} exists already and is never overwritten: does another run write here?"
            )
        batches = streamed(engine)
        chunks = engine.chunks() if batches is None else []
        document = {
            "state": state.to_json(),
            "scalars": engine.scalars(),
            "identity": self.identity(state.sequences).to_json(),
            "world": self.ranks.world,
            "layout": self._layout,
        }
        if not reason and self.retention.is_milestone(step):
            reason = f"every {self.retention.keep_every} steps, never to be deleted"
        if not reason and step == self.retention.best:
            reason = "the best evaluation so far"
        usual = f"every {self.every} steps" if self.due(step) else "the last step, or asked to stop"
        self._saved = step
        background = self.asynchronous and batches is None
        if background:
            with self._phases.main.inside(COPY, step):
                chunks = self._staging.copy(chunks)
        due = partial(self._verification.due, after_others=is_last)
        write = partial(self._write, step, batches or (lambda: [chunks]), document, reason or usual, due)
        if background:
            # A daemon, for a rank that dies of something else must not wait here for ranks that are gone.
            self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            with self._phases.main.inside(WAIT, step):
                write()
        self.stall_seconds = time.monotonic() - begin
        if not background:
            self._raise()

    def wait(self) -> None:
        """Wait until no save is in flight. RuntimeError, one line, on every rank, where the last save failed
        on any.
        """
        if self._thread is not None:
            with self._phases.main.inside(WAIT, self._saved):
                self._thread.join()
            self._thread = None
        self._raise()

    def settle(self) -> None:
        """Wait until nothing is saved, verified or deleted any more; raises as `wait` does."""
        self.wait()
        self._verification.wait()

    def close(self) -> None:
        """Finish the save and the verification in flight; raises as `wait` does."""
        try:
            self.settle()
        finally:
            if self.ranks.rank == 0 and not self._save.failed:  # else another rank may have to read why
                self._board.close()

    def known(self, log: JsonlLog) -> Known:
        """Rank 0: how much of a log is known to be what the resumed checkpoint noted."""
        return self._digests[log.name].known

    def resume(self, engine: Engine) -> TrainState | None:
        """Go on from the newest checkpoint that verifies: see `trainer.checkpoint.resume.resume`."""
        state = resume(
            self.root,
            engine,
            identity=self.identity,
            events=self.events,
            logs=self._digests,
            layout=self._layout,
            ranks=self.ranks,
            guard=self.guard,
            retention=self.retention,
        )
        self._saved = self._resumed = state.step if state is not None else -1
        self._resumed_updates = engine.scalars()["updates"] if state is not None else -1
        return state

    def go_back(
        self, engine: Engine, why: str, allows_a_step: Callable[[TrainState], bool]
    ) -> TrainState | None:
        """Go on from an older checkpoint than the resumed one, from which no step can be made: `why`. None
        where there is none that helps. See `trainer.checkpoint.go_back.go_back`.
        """
        self.settle()
        found = go_back(
            self.root,
            engine,
            resumed=self._resumed,
            why=why,
            allows_a_step=allows_a_step,
            identity=self.identity,
            events=self.events,
            ranks=self.ranks,
            guard=self.guard,
        )
        return self.resume(engine) if found else None

    def _open(self) -> str:
        """Rank 0, at the start: make the folder, remove what dead attempts left; the nonce of this start."""
        with explaining(self.root.parent):
            self.root.mkdir(parents=True, exist_ok=True)
        folders.check_names(self.root)
        self.guard()
        if left := folders.clean(self.root):
            self.events.event("clean", 0, f"removed what unfinished saves left: {', '.join(left)}")
        return secrets.token_hex(8)

    def _make_save(self, patience_seconds: float, gone: Callable[[], object]) -> Save:
        return Save(
            self.root,
            partial(
                Attempt,
                rank=self.ranks.rank,
                world=self.ranks.world,
                patience=patience_seconds,
                board=self._board,
                guard=self.guard,
                gone=gone,
            ),
            self._nonce,
            self.logs,
            self._digests,
            self._record,
        )

    # What follows may run in the background thread, where no collective may be called.

    def _write(self, step: int, *given: Any) -> None:
        with self._phases.save.inside(SAVE, step):
            self._write_and_commit(step, *given)

    def _write_and_commit(
        self, step: int, batches: Batches, document: dict[str, Any], reason: str, due: Callable[[], list[int]]
    ) -> None:
        begin = time.monotonic()
        try:
            size, steps = self._save(step, batches, document, due)
        except Exception as error:
            self._error = error
            return
        self._record("save", step, reason, seconds=round(time.monotonic() - begin, 3), bytes=size)
        # Until an update has been made, an older checkpoint may be what the run has to go back to.
        deletes = self.ranks.rank == 0 and document["scalars"]["updates"] != self._resumed_updates
        self._verification.begin(f"{self._nonce}-{step}", steps, deletes=deletes)

    def _record(self, kind: str, step: int, reason: str, **fields: Any) -> None:
        """Write an event; where that fails, the checkpoint is none the worse."""
        with contextlib.suppress(OSError, RuntimeError):
            self.events.event(kind, step, reason, **fields)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
