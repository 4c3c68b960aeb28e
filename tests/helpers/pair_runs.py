"""Tiny runs of the models that embed pairs, on any layout."""

from dataclasses import dataclass, field
from typing import Any

import torch

from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from runs import Batch
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.pictures import pictures_of
from trainer.models.towers.image_text_config import ImageTextConfig, ImageTowerConfig, TextTowerConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.build import build_objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive_config import ClipConfig
from trainer.optim.build import build_optimizer

VOCAB = 64
SEQ = 32  # of a row, both texts
TEXT_PAIR = TextPairConfig(
    layers=4, hidden=32, heads=4, ffn_hidden=48, vocab=VOCAB, window=4, embedding=12, learnt="scale"
)

IMAGE_TEXT = ImageTextConfig(
    vocab=VOCAB,
    embedding=12,
    learnt="scale_bias",
    text=TextTowerConfig(
        layers=2, hidden=32, heads=4, ffn_hidden=48, max_positions=SEQ, causal=False, project="linear_bias"
    ),
    image=ImageTowerConfig(
        layers=4, hidden=24, heads=2, ffn_hidden=40, image_size=16, patch_size=8, registers=1
    ),
    first_scale=4.0,
)

# With smaller first weights all embeddings point nearly one way, and a rounding grows to 1e-4 within 20
# steps, on one process too.
TWO_VIEWS = VisionConfig(
    init_std=0.1,
    image_size=16,
    patch_size=8,
    layers=4,
    hidden=24,
    heads=2,
    ffn_hidden=40,
    head="embedding",
    embedding=6,
)


@dataclass(frozen=True)
class PairCase:
    """One run of a tiny model."""

    parallel: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=lambda: TEXT_PAIR)
    objective: ObjectiveConfig = field(default_factory=ClipConfig)
    precision: str = "fp32"
    global_batch: int = 8
    micro_batch: int = 8
    steps: int = 5


def row(number: int, model: ModelConfig) -> dict[str, torch.Tensor]:
    """Global sequence `number`: two texts of one counting, of uneven lengths, or one and a picture, or two
    views of a picture. Some are not there.
    """
    draw = torch.Generator().manual_seed(7919 * number + 1)
    start, step = torch.randint(1, VOCAB, (2,), generator=draw).tolist()
    half = SEQ // 2
    length = torch.randint(half // 3, half + 1, (2,), generator=draw)
    if number % 5 == 3:
        length[number % 2] = 0
    offset = torch.randint(8, (2,), generator=draw)
    place = torch.arange(half).expand(2, half)
    padding = place >= length[:, None]
    tokens = (start + step * (place + offset[:, None])) % VOCAB
    views = torch.randint(256, (2, 16, 16, 3), generator=draw, dtype=torch.uint8)
    image = views if isinstance(model, VisionConfig) else views[:1]
    if pictures_of(model) is not None:
        text = {"tokens": tokens[0].masked_fill(padding[0], 0), "documents": padding[0].long()}
        return text | {"length": length[0], "image": (image // 4 + 3 * start).to(torch.uint8)}
    return {
        "tokens": tokens.masked_fill(padding, 0).flatten(),
        "documents": (padding + 2 * torch.arange(2)[:, None]).flatten(),
        "positions": torch.where(padding, place - length[:, None], place).flatten(),
        "length": length,
    }


def micro_batches(case: PairCase, step: int, rank: int, ranks: int) -> list[Batch]:
    rows = case.global_batch // ranks
    first = step * case.global_batch + rank * rows
    batches = []
    for start in range(first, first + rows, case.micro_batch):
        numbers = range(start, start + case.micro_batch)
        read = [row(number, case.model) for number in numbers]
        batches.append(Batch({k: torch.stack([r[k] for r in read]) for k in read[0]}, tuple(numbers)))
    return batches


def build(case: PairCase, rank: int, world: int) -> Engine:
    cfg = ParallelConfig(**case.parallel)
    plan, optim = case.model.plan(), OptimConfig()
    layout = resolve(cfg, world)
    case.model.check_layout(tp=layout.tp, cp=layout.cp)
    return build_engine(
        layout=layout,
        runtime=Runtime(rank, world, rank, torch.device("cpu")),
        cfg=cfg,
        plan=plan,
        model_factory=lambda: build_model(case.model),
        objective=build_objective(case.objective, ObjectiveContext(0, SEQ, VOCAB, 0, bytes, case.model)),
        optimizer_factory=lambda parameters: build_optimizer(parameters, optim, plan),
        precision=case.precision,  # type: ignore[arg-type]
        clip=1.0,
        seed=1,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        positions=case.model.positions_of_row(SEQ // 2),
        nominal_count=case.global_batch * case.objective.targets_per_row(SEQ),
    )


def pair_curve(context: Any, case: PairCase) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step, then loss and recall@1 of an evaluation."""
    engine = build(case, context.rank, context.world)
    try:
        curve = []
        for step in range(case.steps):
            batches = micro_batches(case, step, engine.data_rank, engine.data_ranks)
            result = engine.step(batches, lr=3e-3)
            curve.append((result.loss_sum / result.count, result.grad_norm))
        found = engine.evaluate(micro_batches(case, 90, engine.data_rank, engine.data_ranks))
        hits, of = found.measures["recall@1"]
        return [*curve, (found.loss_sum / found.count, (1 + hits) / of)]
    finally:
        engine.close()
