"""The model of a run or a Hugging Face folder on several ranks, to write texts: by tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from parallel.config import ParallelConfig
from parallel.layout.layout import Layout, resolve
from parallel.world.runtime import Runtime
from trainer.config import evaluating
from trainer.config.run_config import RunConfig
from trainer.ranks import Ranks, on_every_rank
from trainer.start.agreement import agree, program, settings
from trainer.trained.checkpoints import read_newest
from trainer.trained.ends import ends_of
from trainer.trained.on_ranks import open_texts
from trainer.trained.trained_model import TrainedModel
from trainer.trained.weights import load_for_decoding


def open_for_decoding(
    run: Path, overrides: Sequence[str], runtime: Runtime, *, step: int | None = None
) -> TrainedModel:
    """Load a checkpoint of a run, or a Hugging Face folder, onto these ranks, each of which holds its part of
    every matrix. Collective.

    The ranks call the model with the same tokens, have the same logits, and so, with the same seed, draw the
    same tokens: none of them has to be told what another one has drawn.

    overrides: as of `trainer.config.evaluating.load`; without any, all ranks share the model.
    step: of the checkpoint; None: the newest that verifies.

    Raises ValueError where the model cannot be cut so, RuntimeError where the checkpoint is damaged.
    """
    ranks = Ranks(runtime.rank, runtime.world)
    cfg = ranks.together(lambda: evaluating.load_to_decode(run, overrides, runtime.world))
    agree(ranks, program(cfg), settings(cfg))
    checkpoint, texts = open_texts(cfg, run, ranks, step=step)
    layout = resolve(cfg.parallel, runtime.world)

    def load(at: Path) -> nn.Module:
        return load_for_decoding(cfg, at, layout, runtime, ranks)

    if checkpoint is None or step is not None:
        model = load(checkpoint or run)
    else:
        _, model = read_newest(run, checkpoint, load, ranks)
    ends = ranks.together(lambda: ends_of(cfg, run, texts))
    return TrainedModel(model, texts.tokenizer, cfg.data.seq_len, texts.separator, ends, texts.template)


def widest(cfg: RunConfig, world: int) -> Layout:
    """Return the layout of tensor parallelism over as many of `world` ranks as the model can be cut into; the
    ranks beyond hold copies.
    """
    for tp in (tp for tp in range(world, 0, -1) if world % tp == 0):
        try:
            cfg.model.check_layout(tp=tp, cp=1)
        except ValueError:
            continue
        return resolve(ParallelConfig(dp_shard=world // tp, tp=tp, zero=0), world)
    raise on_every_rank(ValueError(f"model.kind={cfg.model.kind} fits no layout"))
