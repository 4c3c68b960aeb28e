"""Tiny runs of any objective on any model and layout, from whole configs, on made-up rows of a stream."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.config import DataConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from runs import SEQ, VOCAB, Batch, State, marks, sequence, state_of
from trainer.config import schema
from trainer.config.run_config import RunConfig
from trainer.objectives.context import ObjectiveContext
from trainer.optim.schedule import learning_rate
from trainer.start.engine import make_engine

EXAMPLES = Path(__file__).resolve().parents[3] / "docs/examples"
CLASSES = 5
EVALUATED_STEP = 90  # the rows of a step that no run takes
# A run's own keys, under those that a case and a layout give.
PLAIN: dict[str, dict[str, Any]] = {
    "data": {"sources": [{"path": "made-up"}], "seq_len": SEQ},
    "optim": {"lr": 3e-3, "schedule": "constant", "warmup_steps": 5},
    "train": {"steps": 20, "global_batch": 8, "micro_batch": 2, "precision": "fp32"},
}

Sections = Mapping[str, dict[str, Any]]
"""The sections of a config, as a file has them."""


def config_of(sections: Sections) -> RunConfig:
    """Return a config of these sections over those of PLAIN, as reading a file does."""
    if str(EXAMPLES) not in sys.path:  # models of docs/examples are found there
        sys.path.append(str(EXAMPLES))
    merged = {name: PLAIN.get(name, {}) | dict(sections.get(name, {})) for name in {*PLAIN, *sections}}
    cfg: RunConfig = schema.build(RunConfig, {"name": "run", "seed": 1, **merged})
    return cfg


def row(number: int, data: DataConfig) -> dict[str, Tensor]:
    """What the stream gives of global sequence `number` under these keys. Some rows are empty, as those of
    damaged documents are, and have no label.
    """
    if data.packing in ("views", "pair"):
        return two_texts(number)
    alone = data.packing in ("one", "marked")
    found = sequence(number, data.document_mask and not alone)
    kind, empty = int(found["tokens"][0]), number % 11 == 3
    if alone:
        length = 0 if empty else int((found["following"] >= 0).sum())
        places = torch.arange(SEQ)
        found["tokens"] = found["tokens"].masked_fill(places >= length, 0)
        found["following"] = found["following"].masked_fill(places >= length, -1)
        found["positions"], found["documents"] = places, (places >= length).long()
        found |= {"length": torch.tensor(length), "label": torch.tensor(-1 if empty else kind % CLASSES)}
    if data.packing == "marked":
        marked = marks(number, found["following"])
        found |= {name: marked[name] * (not empty) for name in ("marks", "following_marks")}
    if data.partners:
        other = row(number + 100_000, DataConfig(packing="one"))
        found |= {"partner": other["tokens"], "partner_following": other["following"]}
    if data.image_size:
        found["image"] = picture(number, kind, data) * (not empty)
    return found


def two_texts(number: int) -> dict[str, Tensor]:
    """Two texts of one counting, of uneven lengths; in some rows a text is missing."""
    draw = torch.Generator().manual_seed(7919 * number + 1)
    start, step = torch.randint(1, VOCAB, (2,), generator=draw).tolist()
    half = SEQ // 2
    length = torch.randint(half // 3, half + 1, (2,), generator=draw)
    if number % 5 == 3:
        length[number % 2] = 0
    place = torch.arange(half).expand(2, half)
    padding = place >= length[:, None]
    tokens = (start + step * (place + torch.randint(8, (2, 1), generator=draw))) % VOCAB
    return {
        "tokens": tokens.masked_fill(padding, 0).flatten(),
        "documents": (padding + 2 * torch.arange(2)[:, None]).flatten(),
        "positions": torch.where(padding, place - length[:, None], place).flatten(),
        "length": length,
    }


def picture(number: int, kind: int, data: DataConfig) -> Tensor:
    """Noisy views of stripes, uint8 [views, size, size, 3]: direction, width and colour say the kind."""
    draw = torch.Generator().manual_seed(7919 * number + 1)
    size, label = data.image_size, kind % CLASSES
    wave = torch.arange(size) * (1 + label)
    stripes = (wave[:, None] if label % 2 else wave[None, :]).expand(size, size) * 20 % 200
    colour = torch.tensor([40, 30 * label, 200 - 30 * label]) + kind // 2
    noise = torch.randint(60, (data.image_views, size, size, 3), generator=draw)
    return (((stripes[..., None] + colour) * 0.6).long() + noise).clamp(0, 255).to(torch.uint8)


def micro_batches(cfg: RunConfig, step: int, rank: int, ranks: int) -> list[Batch]:
    """What data rank `rank` reads in a step: its rows of the global batch, in micro-batches."""
    rows = cfg.train.global_batch // ranks
    first = step * cfg.train.global_batch + rank * rows
    batches = []
    for start in range(first, first + rows, cfg.train.micro_batch):
        numbers = range(start, start + cfg.train.micro_batch)
        read = [row(number, cfg.data) for number in numbers]
        batches.append(Batch({k: torch.stack([r[k] for r in read]) for k in read[0]}, tuple(numbers)))
    return batches


def build(cfg: RunConfig, rank: int, world: int) -> Engine:
    weights = cfg.finetune.class_weights
    context = ObjectiveContext(
        cfg.seed, cfg.data.seq_len, VOCAB, 0, bytes, cfg.model, CLASSES, class_weights=weights
    )
    wrong = context.too_small(cfg.model.vocab, cfg.objective) or context.wrong_classes(cfg.objective)
    assert not wrong, wrong
    runtime = Runtime(rank, world, rank, torch.device("cpu"))
    return make_engine(cfg, runtime, resolve(cfg.parallel, world), context)


@dataclass(frozen=True)
class Run:
    """What a run gave on one rank.

    curve: (mean loss, gradient norm) of every step.
    evaluated: then of an evaluation: its loss, its count, and each figure of its measures.
    state: at the end.
    """

    curve: list[tuple[float, float]]
    evaluated: dict[str, float]
    state: State


def train(engine: Engine, cfg: RunConfig) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step."""
    curve = []
    for step in range(cfg.train.steps):
        batches = micro_batches(cfg, step, engine.data_rank, engine.data_ranks)
        result = engine.step(batches, lr=learning_rate(step, cfg.optim, cfg.train.steps))
        curve.append((result.loss_sum / result.count, result.grad_norm))
    return curve


def run(context: Any, sections: Sections) -> Run:
    """Train on a pool's rank, and evaluate."""
    cfg = config_of(sections)
    engine = build(cfg, context.rank, context.world)
    try:
        curve, state = train(engine, cfg), state_of(engine)
        found = engine.evaluate(micro_batches(cfg, EVALUATED_STEP, engine.data_rank, engine.data_ranks))
        figures = {name: total / of if of else 0.0 for name, (total, of) in found.measures.items()}
        return Run(curve, {"loss": found.loss_sum / found.count, "count": found.count, **figures}, state)
    finally:
        engine.close()
