"""A run opened for reading: its engine at its newest checkpoint, and the batches that come next.

Nothing is written into the run folder: no lock, no epoch number, no event. The run may be training meanwhile.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data.stream.stream import Stream
from parallel.layout.layout import Layout
from parallel.torch_engine.engine import TorchEngine
from parallel.world.runtime import Runtime
from trainer.checkpoint import folder as folders
from trainer.checkpoint.newest import damage, newest
from trainer.checkpoint.resume import load_state
from trainer.config.run_config import RunConfig
from trainer.first_weights.fill import begin, fill_frozen
from trainer.first_weights.open import open_base
from trainer.process import threads
from trainer.ranks import Ranks, on_every_rank
from trainer.run import open_steps
from trainer.start.engine import make_engine
from trainer.start.opening import identity, objective_context, open_alike
from trainer.state import TrainState
from trainer.steps import Steps


@dataclass
class Session:
    """A run that is looked into.

    cfg: its config.
    ranks: this rank among all.
    layout: sizes of the mesh axes.
    engine: the model and its optimiser at `state`.
    stream: what the run reads.
    state: how far the run has come.
    steps: this rank's micro-batches from there on.
    checkpoint: the folder that was read; None: new weights.
    """

    cfg: RunConfig
    ranks: Ranks
    layout: Layout
    engine: TorchEngine
    stream: Stream
    state: TrainState
    steps: Steps
    checkpoint: Path | None

    @property
    def origin(self) -> str:
        """Where the weights are from, in words."""
        if self.checkpoint is None:
            return "new weights"
        return f"the weights of step {self.state.step} ({self.checkpoint})"


def open_session(cfg: RunConfig, runtime: Runtime, stack: ExitStack, *, step: int | None) -> Session:
    """Build the engine, and fill it from a checkpoint. Collective.

    stack: closes what was opened.
    step: of the checkpoint; 0: none, new weights; None: the newest that verifies, where there is one.

    ValueError where the run has no checkpoint of that step, or the config describes another run; RuntimeError
    where it is damaged.
    """
    if cfg.parallel.engine != "torch":
        raise ValueError(
            f"parallel.engine={cfg.parallel.engine}: --debug looks into the torch engine: add "
            "parallel.engine=torch, which reads the same checkpoints and computes the same run"
        )
    ranks = Ranks(runtime.rank, runtime.world)
    cfg, layout, stream = open_alike(cfg, ranks)
    threads.settle(cfg, runtime, ranks)
    engine = make_engine(cfg, runtime, layout, objective_context(cfg, stream))
    assert isinstance(engine, TorchEngine)
    stack.callback(engine.close)
    state, checkpoint = _load(cfg, engine, stream, ranks, step)
    loader, steps = open_steps(cfg, engine, stream, state, ranks)
    stack.callback(loader.close)
    return Session(cfg, ranks, layout, engine, stream, state, steps, checkpoint)


def _load(
    cfg: RunConfig, engine: TorchEngine, stream: Stream, ranks: Ranks, step: int | None
) -> tuple[TrainState, Path | None]:
    """Fill the engine; return the state and the folder that was read. Collective."""
    root = cfg.folder / "checkpoints"
    base = open_base(cfg, ranks)
    frozen = base.to_json() if base else None
    while True:
        before = ranks.on_rank_zero(lambda: folders.steps(root))
        chosen = _choose(root, before, ranks, step)
        if chosen is None:
            begin(cfg, engine, stream, ranks, source=base.source if base else None)
            return TrainState(), None
        at = folders.step_folder(root, chosen)
        try:
            document = load_state(at, engine, lambda position: identity(cfg, stream, position, frozen), ranks)
        except (RuntimeError, OSError):
            # The run may have removed it meanwhile, where it has a newer one.
            there = ranks.on_rank_zero(lambda: folders.steps(root))
            if chosen in there or step is not None:
                raise
            continue
        fill_frozen(base, engine.frozen(), cfg, ranks)
        engine.load(engine.scalars())
        return TrainState.from_json(document["state"]), at


def _choose(root: Path, there: list[int], ranks: Ranks, step: int | None) -> int | None:
    """Return the step of the checkpoint to read; None: none. `there`: the steps that have one. Collective."""
    if step == 0 or (step is None and not there):
        return None
    if step is None:
        found = newest(root, ranks)
        if found.step is None:
            now = ranks.on_rank_zero(lambda: folders.steps(root))
            if now != there:  # the run has replaced them meanwhile
                return _choose(root, now, ranks, step)
            why = f"no checkpoint verifies: {found.passed_over[0][1]}"
            raise on_every_rank(RuntimeError(f"{root}: {why}; --step 0 begins with new weights"))
        return found.step
    if step not in there:
        listed = ", ".join(map(str, there)) or "none"
        raise on_every_rank(
            ValueError(f"--step {step}: {root} has no checkpoint of that step; those there: {listed}")
        )
    if reason := damage(folders.step_folder(root, step), ranks):
        raise on_every_rank(RuntimeError(reason))
    return step
