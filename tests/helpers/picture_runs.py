"""Tiny runs of any model and objective on made-up pictures or tokens, on any layout."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from runs import SEQ, Alone, Batch, sequence
from trainer.config import schema
from trainer.config.run_config import RunConfig
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.tuned.plan import tuned_plan
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.optim.build import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 5


@dataclass(frozen=True)
class PictureCase:
    """One run.

    model, objective: their sections of a config, with `kind`.
    size: height and width of the pictures.
    views: pictures of a row.
    tokens: rows of tokens in the place of pictures.
    """

    model: dict[str, Any]
    objective: dict[str, Any]
    parallel: dict[str, Any] = field(default_factory=dict)
    size: int = 16
    views: int = 1
    tokens: bool = False
    precision: str = "fp32"
    global_batch: int = 8
    micro_batch: int = 1
    steps: int = 20
    lr: float = 3e-3
    finetune: dict[str, Any] = field(default_factory=dict)


def row(number: int, case: PictureCase) -> dict[str, Tensor]:
    """Sequence `number`: noisy stripes, whose colour and direction say the class; a few have no label."""
    draw = torch.Generator().manual_seed(7919 * number + 1)
    label = int(torch.randint(CLASSES, (1,), generator=draw))
    wave = torch.arange(case.size) * (1 + label)
    stripes = (wave[:, None] if label % 2 else wave[None, :]).expand(case.size, case.size) * 20 % 200
    colour = torch.tensor([40, 30 * label, 200 - 30 * label])
    noise = torch.randint(60, (case.views, case.size, case.size, 3), generator=draw)
    image = ((stripes[None, ..., None] + colour) * 0.7).long() + noise
    return {
        "image": image.clamp(0, 255).to(torch.uint8),
        "label": torch.tensor(-1 if number % 11 == 3 else label),
    }


def text(number: int) -> dict[str, Tensor]:
    """Sequence `number` of tokens: one text and padding behind it, with a class of its first token."""
    row = sequence(number, documents=False)
    length, places = SEQ - number % 5, torch.arange(SEQ)
    return row | {
        "positions": places,
        "documents": (places >= length).long(),
        "length": torch.tensor(length),
        "label": torch.tensor(-1 if number % 11 == 3 else int(row["tokens"][0]) % CLASSES),
    }


def micro_batches(case: PictureCase, step: int, rank: int, ranks: int) -> list[Batch]:
    """What data rank `rank` reads in a step."""
    rows = case.global_batch // ranks
    first = step * case.global_batch + rank * rows
    batches = []
    for start in range(first, first + rows, case.micro_batch):
        numbers = range(start, start + case.micro_batch)
        read = [text(n) if case.tokens else row(n, case) for n in numbers]
        batches.append(Batch({k: torch.stack([r[k] for r in read]) for k in read[0]}, tuple(numbers)))
    return batches


def section(name: str, values: dict[str, Any]) -> Any:
    """Build a section of the config, as reading a file does."""
    whole = {"name": "run", "data": {"sources": [{"path": "x"}]}, "model": {"kind": "decoder"}, name: values}
    return getattr(schema.build(RunConfig, whole), name)


def build(case: PictureCase, rank: int, world: int) -> Engine:
    cfg, model = ParallelConfig(**case.parallel), section("model", case.model)
    objective = section("objective", case.objective)
    finetune = section("finetune", case.finetune)
    layout, plan = resolve(cfg, world), tuned_plan(model.plan(), finetune)
    seq_len = SEQ if case.tokens else 0
    model.check_layout(tp=layout.tp, cp=layout.cp)
    return build_engine(
        layout=layout,
        runtime=Runtime(rank, world, rank, torch.device("cpu")),
        cfg=cfg,
        plan=plan,
        model_factory=lambda: build_model(model, None, finetune),
        objective=build_objective(objective, ObjectiveContext(1, seq_len, model.vocab, 0, bytes, model)),
        optimizer_factory=lambda parameters: build_optimizer(parameters, OptimConfig(), plan),
        precision=case.precision,  # type: ignore[arg-type]
        clip=1.0,
        seed=1,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        positions=model.positions_of_row(seq_len),
        nominal_count=case.global_batch * objective.targets_per_row(seq_len),
    )


def train(engine: Engine, case: PictureCase, first_step: int = 0) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step."""
    curve = []
    for step in range(first_step, first_step + case.steps):
        lr = case.lr * min(1.0, (step + 1) / 5)
        result = engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=lr)
        curve.append((result.loss_sum / result.count, result.grad_norm))
    return curve


def curve(context: Any, case: PictureCase) -> list[tuple[float, float]]:
    """Run a case on a pool's rank."""
    engine = build(case, context.rank, context.world)
    try:
        return train(engine, case)
    finally:
        engine.close()


_cases: dict[str, PictureCase] = {}


@functools.cache
def _reference(key: str) -> list[tuple[float, float]]:
    return curve(Alone(), _cases[key])


def reference(case: PictureCase) -> list[tuple[float, float]]:
    """The same run on one process in fp32; computed once a session."""
    alone = replace(case, parallel={}, precision="fp32")
    _cases[repr(alone)] = alone
    return _reference(repr(alone))
