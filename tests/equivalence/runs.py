"""Tiny runs of the real decoder on any layout, for comparison: what a rank executes, and the batches it sees."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.plan import resolve
from parallel.runtime import Runtime
from trainer.config import OptimConfig
from trainer.models.config import DecoderConfig
from trainer.models.decoder import Decoder
from trainer.objectives.causal_lm import CausalLM
from trainer.optim import build_optimizer

VOCAB = 128
SEQ = 32


@dataclass(frozen=True)
class Batch:
    """A micro-batch as the loader makes them."""

    tensors: dict[str, Tensor]
    sequences: tuple[int, ...]

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        return Batch({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.sequences)


@dataclass(frozen=True)
class Case:
    """One run. Every field that is not a layout must leave the curve alone only if it does in the comparison."""

    parallel: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    global_batch: int = 8
    micro_batch: int = 1
    steps: int = 20
    clip: float = 1.0
    lr: float = 3e-3
    documents: bool = False
    seed: int = 1


def sequence(number: int, documents: bool) -> dict[str, Tensor]:
    """Global sequence `number`: noisy counting, so that there is something to learn; targets masked unevenly."""
    draw = torch.Generator().manual_seed(7919 * number + 1)
    start = int(torch.randint(VOCAB, (1,), generator=draw))
    tokens = (start + 3 * torch.arange(SEQ + 1)) % VOCAB
    noise = torch.randint(VOCAB, (SEQ + 1,), generator=draw)
    tokens = torch.where(torch.rand(SEQ + 1, generator=draw) < 0.2, noise, tokens)
    targets = tokens[1:].clone()
    targets[int(SEQ * (0.05 + 0.95 * torch.rand(1, generator=draw) ** 2)) :] = -100
    row = {"tokens": tokens[:-1], "targets": targets}
    if documents:
        starts = torch.rand(SEQ, generator=draw) < 0.15
        row["documents"] = starts.cumsum(0)
        last = torch.where(starts, torch.arange(SEQ), 0).cummax(0).values
        row["positions"] = torch.arange(SEQ) - last
    return row


def micro_batches(case: Case, step: int, rank: int, ranks: int) -> list[Batch]:
    """What data rank `rank` reads in a step: its rows of the global batch, cut into micro-batches in order."""
    rows = case.global_batch // ranks
    first = step * case.global_batch + rank * rows
    batches = []
    for start in range(first, first + rows, case.micro_batch):
        numbers = range(start, start + case.micro_batch)
        read = [sequence(number, case.documents) for number in numbers]
        batches.append(Batch({k: torch.stack([row[k] for row in read]) for k in read[0]}, tuple(numbers)))
    return batches


def optimizer(parameters: list[Any]) -> torch.optim.Optimizer:
    return build_optimizer(
        parameters, OptimConfig(), no_decay=lambda _, shape: len(shape) == 1, hidden_matrix=lambda *_: False
    )


def build(case: Case, rank: int, world: int) -> Engine:
    cfg = ParallelConfig(**case.parallel)
    sizes: dict[str, Any] = dict(
        layers=4, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, vocab=VOCAB, qk_norm=True
    )
    model = DecoderConfig(**{**sizes, **case.model})
    return build_engine(
        layout=resolve(cfg, world),
        runtime=Runtime(rank, world, rank, torch.device("cpu")),
        cfg=cfg,
        model_factory=lambda: Decoder(model),
        objective=CausalLM(),
        optimizer_factory=optimizer,
        precision=case.precision,  # type: ignore[arg-type]
        clip=case.clip,
        seed=case.seed,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        seq_len=SEQ,
    )


def train(engine: Engine, case: Case, first_step: int = 0) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step."""
    curve = []
    for step in range(first_step, first_step + case.steps):
        lr = case.lr * min(1.0, (step + 1) / 5)
        result = engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=lr)
        curve.append((result.loss_sum / result.count, result.grad_norm))
    return curve


def curve(context: Any, case: Case) -> list[tuple[float, float]]:
    """Run a case on a pool's rank."""
    engine = build(case, context.rank, context.world)
    try:
        return train(engine, case)
    finally:
        engine.close()
