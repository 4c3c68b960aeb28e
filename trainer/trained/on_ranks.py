"""A run's checkpoint, or a Hugging Face folder, on any layout: an engine that evaluates, and what it must
know of the model's texts.

The training corpora need not be there: what they said of texts is in the run folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.tokenizer.prompting import Prompting
from parallel.engine import Engine
from parallel.layout.layout import Layout
from parallel.world.runtime import Runtime
from trainer.config import checks, evaluating, of_folder
from trainer.config.run_config import RunConfig
from trainer.objectives.context import ObjectiveContext
from trainer.process import threads
from trainer.ranks import Ranks, on_every_rank
from trainer.start.agreement import agree, program, settings
from trainer.start.engine import make_engine
from trainer.trained.checkpoints import checkpoint_of, newest_checkpoint, read_newest
from trainer.trained.tokenizer import load_prompting, prompting_of
from trainer.trained.weights import fill_weights


@dataclass(frozen=True)
class TrainedRun:
    """The model of a checkpoint on this rank, in an engine that only evaluates.

    run: the run folder, or the Hugging Face folder.
    checkpoint: of the run; None: the weights are those of a Hugging Face folder.
    cfg: the run's config, with the layout of these ranks.
    engine, layout: hold the model.
    texts: how texts become ids.
    context: what the run's objective may know of it.
    ranks: this rank among all.
    runtime: the same, with its device.
    """

    run: Path
    checkpoint: Path | None
    cfg: RunConfig
    engine: Engine
    layout: Layout
    texts: Prompting
    context: ObjectiveContext
    ranks: Ranks
    runtime: Runtime

    @property
    def step(self) -> int | None:
        """Of the checkpoint."""
        if self.checkpoint is None:
            return None
        return int(self.checkpoint.name.removeprefix("step-"))  # the run may have removed it since

    @property
    def weights(self) -> Path:
        """The folder of the weights, for `trainer.trained.weights`."""
        return self.checkpoint or self.run

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
    """Load a checkpoint of a run, or the weights of a Hugging Face folder, onto these ranks. Collective.

    run: the run folder, or the Hugging Face folder.
    overrides: of the layout and of what is read; see `trainer.config.evaluating.load`.
    stack: closes the engine.
    step: of the checkpoint; None: the newest that verifies.

    Raises ValueError where the layout cannot be or there is no checkpoint of that step, RuntimeError where
    one is damaged.
    """
    ranks = Ranks(runtime.rank, runtime.world)
    cfg = ranks.together(lambda: evaluating.load(run, overrides, runtime.world))
    agree(ranks, program(cfg), settings(cfg))
    layout = checks.layout(cfg, runtime.world)
    threads.settle(cfg, runtime, ranks)
    checkpoint, texts = open_texts(cfg, run, ranks, step=step)
    context = ObjectiveContext(
        seed=cfg.seed,
        seq_len=cfg.data.seq_len,
        vocab=texts.vocab,
        eos=texts.separator,
        tokenizer=_tokenizer_of(run, texts),
        model=cfg.model,
    )
    engine = make_engine(cfg, runtime, layout, context, trains=False)
    stack.callback(engine.close)
    chunks = [*engine.frozen(), *engine.chunks()]
    if checkpoint is None or step is not None:
        fill_weights(chunks, cfg, checkpoint or run, ranks)
    else:
        checkpoint, _ = read_newest(run, checkpoint, lambda at: fill_weights(chunks, cfg, at, ranks), ranks)
    engine.load(engine.scalars())
    return TrainedRun(run, checkpoint, cfg, engine, layout, texts, context, ranks, runtime)


def open_texts(cfg: RunConfig, run: Path, ranks: Ranks, *, step: int | None) -> tuple[Path | None, Prompting]:
    """Return the verified checkpoint of a run, None of a Hugging Face folder; and how texts become ids for
    its model. Collective. Raises as `open_run` does.
    """
    if not of_folder.is_folder(run):

        def read(checkpoint: Path) -> Prompting:
            return ranks.together(lambda: load_prompting(run, checkpoint))

        if step is None:
            return read_newest(run, newest_checkpoint(run, ranks), read, ranks)
        checkpoint = checkpoint_of(run, step, ranks)
        return checkpoint, read(checkpoint)
    if step is not None:
        raise on_every_rank(
            ValueError(
                f"--step {step}: {run} is a Hugging Face folder, which has one set of weights: leave it out"
            )
        )
    return None, ranks.together(lambda: prompting_of(run, cfg.model))


def _tokenizer_of(run: Path, texts: Prompting) -> Callable[[], bytes]:
    file = run / "tokenizer.json"
    return file.read_bytes if file.is_file() else lambda: texts.tokenizer.to_str().encode()
