"""A tiny model whose loss compares the rows of the global batch, on any layout, and the same in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model_plan import Init, ModelPlan, Tower
from common.objective import ModelInputs
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Engine
from parallel.layout.layout import resolve
from parallel.parameters.initialize import draw
from parallel.world.runtime import Runtime
from runs import Batch, State, state_of
from trainer.config.sections import OptimConfig
from trainer.optim.build import build_optimizer

LEFT, RIGHT, HIDDEN, EMBEDDING = 6, 10, 8, 5  # inputs of the two towers, their width, an embedding's
BLOCKS = 4  # of each tower
SEED = 3
SOURCES = 2  # row n is of source n % SOURCES


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Head(nn.Module):
    """[rows, hidden] → [rows, embedding], and a learnt number beside it where there is one."""

    def __init__(self, learnt: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, EMBEDDING, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(1)) if learnt else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return (
            z if self.log_scale is None else torch.cat([z, self.log_scale.to(z.dtype).expand(len(z), 1)], 1)
        )


class Side(nn.Module):
    def __init__(self, features: int, learnt: bool) -> None:
        super().__init__()
        self.enter: nn.Module | None = nn.Linear(features, HIDDEN)
        self.blocks = nn.ModuleDict({str(number): Block() for number in range(BLOCKS)})
        self.head: nn.Module | None = Head(learnt)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.enter, *self.blocks.values(), self.head):
            x = x if part is None else part(x)
        return x


class TwoTowers(nn.Module):
    """x [rows, LEFT] and `right` [rows, RIGHT] → [rows, 2 · EMBEDDING + 1]. Between stages [rows, 2 · HIDDEN]
    travel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Side(LEFT, learnt=False), Side(RIGHT, learnt=True)

    def forward(self, x: Tensor, *, right: Tensor) -> Tensor:
        inputs = (x, right) if self.left.enter is not None else x.split(HIDDEN, dim=1)
        return torch.cat([self.left(inputs[0]), self.right(inputs[1])], dim=1)


PLAN = ModelPlan(
    towers=tuple(
        Tower(f"{side}.blocks", (f"{side}.enter",), (f"{side}.head",)) for side in ("left", "right")
    ),
    tensor=(),
    tied=(),
    hidden_shape=lambda shape: (shape[0], 2 * HIDDEN),
    init=lambda name, shape: Init("ones" if name.endswith("log_scale") else "normal", 0.4),
    no_decay=lambda name, shape: False,
)


class Softmax:
    """The same as an objective: see `common.objective.ComparesRows`."""

    measures = ("recall@1",)

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        return ModelInputs(tensors["left"], {"right": tensors["right"]})

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        raise AssertionError("rows are compared with all rows")

    def counted(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> Tensor:
        return tensors["counted"]

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        scale = every[:, -1].mean().exp()
        (a, b), (all_a, all_b) = (
            (F.normalize(z[:, :EMBEDDING], dim=1), F.normalize(z[:, EMBEDDING:-1], dim=1))
            for z in (mine, every)
        )
        here = counted[first : first + len(mine)]
        losses = torch.zeros_like(mine[:, 0])
        for one, others in ((a, all_b), (b, all_a)):
            scores = (scale * one @ others.T).masked_fill(~counted, -1e30)
            losses = losses - scores.log_softmax(1).diagonal(first) / 2
        return losses * here, here.float()

    def measure_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> Tensor:
        a, b = mine[:, :EMBEDDING], every[:, EMBEDDING:-1]
        nearest = (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).masked_fill(~counted, -1e30).argmax(dim=1)
        here = counted[first : first + len(mine)]
        hits = (nearest == torch.arange(first, first + len(mine))) & here
        return torch.stack([hits.sum(), here.sum()])[None].float()

    def bounded(self, rows: Tensor, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Compared:
    """One run of the tiny model."""

    parallel: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    global_batch: int = 16
    micro_batch: int = 16
    steps: int = 3
    objective: type[Softmax] = Softmax


def rows_of(step: int, numbers: range, total: int) -> Batch:
    """Rows of a step's global batch."""
    draw = torch.Generator().manual_seed(step)
    left, right = torch.randn(total, LEFT, generator=draw), torch.randn(total, RIGHT, generator=draw)
    right[:, :LEFT] += left
    counted = counted_of(total)
    part = slice(numbers.start, numbers.stop)
    source = torch.arange(total)[part] % SOURCES
    tensors = {"left": left[part], "right": right[part], "counted": counted[part], "source": source}
    return Batch(tensors, tuple(step * total + number for number in numbers))


def micro_batches(case: Compared, step: int, rank: int, ranks: int) -> list[Batch]:
    rows = case.global_batch // ranks
    starts = range(rank * rows, (rank + 1) * rows, case.micro_batch)
    return [rows_of(step, range(start, start + case.micro_batch), case.global_batch) for start in starts]


def build(case: Compared, rank: int, world: int) -> Engine:
    cfg = ParallelConfig(**case.parallel)
    optim = OptimConfig(weight_decay=0.0)
    return build_engine(
        layout=resolve(cfg, world),
        runtime=Runtime(rank, world, rank, torch.device("cpu")),
        cfg=cfg,
        plan=PLAN,
        model_factory=TwoTowers,
        objective=case.objective(),
        optimizer_factory=lambda parameters: build_optimizer(parameters, optim, PLAN),
        precision=case.precision,  # type: ignore[arg-type]
        clip=0.0,
        seed=SEED,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        positions=1,
        nominal_count=case.global_batch,
        sources=SOURCES,
    )


def run(context: Any, case: Compared) -> tuple[list[tuple[float, float]], State]:
    """(mean loss, gradient norm) of every step, then loss and recall@1 of an evaluation; and this rank's
    state after the first step.
    """
    engine = build(case, context.rank, context.world)
    curve = []
    try:
        for step in range(case.steps):
            batches = micro_batches(case, step, engine.data_rank, engine.data_ranks)
            result = engine.step(batches, lr=1e-2)
            curve.append((result.loss_sum / result.count, result.grad_norm))
            parts = [sum(column) for column in zip(*result.sources, strict=True)]
            assert parts == pytest.approx([result.loss_sum, result.count])
            if step == 0:
                state = state_of(engine)
        return [*curve, evaluated(engine, case)], state
    finally:
        engine.close()


def evaluated(engine: Engine, case: Compared) -> tuple[float, float]:
    """Loss and recall@1 of rows that are evaluated together, though in as many calls as there are batches."""
    batches = micro_batches(case, 90, engine.data_rank, engine.data_ranks)
    assert engine.evaluate(batches[:1], stop=True, last=False).stop, "and these rows are dropped"
    for number, batch in enumerate(batches):
        found = engine.evaluate([batch], last=number == len(batches) - 1)
        assert (found.count > 0) == (number == len(batches) - 1)
    hits, count = found.measures["recall@1"]
    assert count == found.count == counted_of(case.global_batch).sum()
    return found.loss_sum / found.count, hits / count


def counted_of(total: int) -> Tensor:
    """Every seventh row is not counted."""
    return torch.arange(total) % 7 != 3


def in_float64(case: Compared) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step, from one pass over the whole global batch."""
    model = TwoTowers().double()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(draw(name, tuple(parameter.shape), PLAN, SEED, torch.device("cpu")))
    batch = rows_of(0, range(case.global_batch), case.global_batch).tensors
    z = model(batch["left"].double(), right=batch["right"].double())
    counted = batch["counted"]
    a, b = (F.normalize(part[counted], dim=1) for part in (z[:, :EMBEDDING], z[:, EMBEDDING:-1]))
    logits = model.right.head.log_scale.exp() * a @ b.T  # type: ignore[union-attr]
    loss = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
