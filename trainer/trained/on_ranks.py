"""A run's checkpoint on any layout: an engine that evaluates, and what it must know of the run's texts.

The training corpora need not be there: what they said of texts is in the run folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.tokenizer.prompting import Prompting
from parallel.engine import Engine
from parallel.layout.layout import Layout
from parallel.world.runtime import Runtime
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import load
from trainer.config import checks, evaluating
from trainer.config.run_config import RunConfig
from trainer.first_weights.base import check_base, fill_frozen, open_base
from trainer.objectives.context import ObjectiveContext
from trainer.process import threads
from trainer.ranks import Ranks, gather
from trainer.start.agreement import agree, program, settings
from trainer.start.engine import make_engine
from trainer.trained.checkpoints import checkpoint_of, newest_checkpoint
from trainer.trained.tokenizer import load_prompting


@dataclass(frozen=True)
class TrainedRun:
    """The model of a checkpoint on this rank, in an engine that only evaluates.

    run: the run folder.
    step: of the checkpoint.
    cfg: the run's config, with the layout of these ranks.
    engine, layout: hold the model.
    texts: how texts become ids.
    context: what the run's objective may know of it.
    ranks: this rank among all.
    runtime: the same, with its device.
    """

    run: Path
    step: int
    cfg: RunConfig
    engine: Engine
    layout: Layout
    texts: Prompting
    context: ObjectiveContext
    ranks: Ranks
    runtime: Runtime

    @cached_property
    def tokenizer_sha256(self) -> str:
        """The hash of the tokenizer that the model was trained with."""
        return hashlib.sha256(self.context.tokenizer()).hexdigest()


def open_run(
    run: Path,
    overrides: Sequence[str],
    runtime: Runtime,
    stack: ExitStack,
    *,
    step: int | None = None,
) -> TrainedRun:
    """Load a checkpoint of a run onto these ranks. Collective.

    run: the run folder.
    overrides: of the layout and of what is read; see `trainer.config.evaluating.load`.
    stack: closes the engine.
    step: of the checkpoint; None: the newest that verifies.

    Raises ValueError where the layout cannot be or there is no checkpoint of that step, RuntimeError where
    one is damaged.
    """
    ranks = Ranks(runtime.rank, runtime.world, gather)
    cfg = ranks.together(lambda: evaluating.load(run, overrides, runtime.world))
    agree(ranks, program(cfg), settings(cfg))
    layout = checks.layout(cfg, runtime.world)
    threads.settle(cfg, runtime, ranks)
    folder = newest_checkpoint(run, ranks) if step is None else checkpoint_of(run, step, ranks)
    texts = ranks.together(lambda: load_prompting(run, folder))
    context = ObjectiveContext(
        seed=cfg.seed,
        seq_len=cfg.data.seq_len,
        vocab=texts.vocab,
        eos=texts.separator,
        tokenizer=(run / "tokenizer.json").read_bytes,
        model=cfg.model,
    )
    engine = make_engine(cfg, runtime, layout, context, trains=False)
    stack.callback(engine.close)
    ranks.together(lambda: load(folder, engine.chunks()))
    base = open_base(cfg, ranks, run=run)
    ranks.together(lambda: check_base(base, folder))
    fill_frozen(base, engine.frozen(), cfg, ranks)
    engine.load(engine.scalars())
    return TrainedRun(run, read_manifest(folder).step, cfg, engine, layout, texts, context, ranks, runtime)
