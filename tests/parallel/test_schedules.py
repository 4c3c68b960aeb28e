"""Pipeline schedules against their published figures: bubble, and micro-batches in flight on each rank.

Stages take a fixed time by a clock that is counted, not slept: activations and gradients carry their sender's
clock, and a stage starts at the later of that and its own rank's. So the figures are exact under any load.
Formulas: GPipe (Huang et al. 2019, arXiv:1811.06965), 1F1B and interleaved 1F1B (Narayanan et al. 2021,
arXiv:2104.04473), breadth-first (Lamy-Poirier 2023, arXiv:2211.05953), zero bubble (Qi et al. 2023,
arXiv:2401.10241).
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.config import ParallelConfig
from parallel.mesh import make_mesh
from parallel.pipeline import Pipeline
from parallel.plan import SCHEDULES, resolve

# Of a rank's whole share of the model, for one micro-batch: forward, input gradients, weight gradients.
FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT = 4.0, 4.0, 4.0
RANKS, MICRO_BATCHES = 4, 8


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    kwargs: dict[str, Tensor]


class Clock:
    """A rank's time, and how many forwards have not yet come back: now, and the most there were."""

    def __init__(self) -> None:
        self.now, self.flying, self.most_flying = 0.0, 0, 0
        self.began: float | None = None

    def work(self, ready: float, duration: float) -> float:
        start = max(self.now, ready)
        self.began = start if self.began is None else self.began
        self.now = start + duration
        return self.now


class _Input(torch.autograd.Function):
    """The work that makes outputs, and in backward the gradient of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, backward: float, share: float, clock: Clock
    ) -> Tensor:
        ctx.backward_time, ctx.clock = backward * share, clock
        clock.flying += 1
        clock.most_flying = max(clock.most_flying, clock.flying)
        return torch.full_like(x, clock.work(x.max().item(), FORWARD * share))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.clock.flying -= 1
        done = ctx.clock.work(grads[0].max().item(), ctx.backward_time)
        return torch.full_like(grads[0], done), None, None, None, None


class _Weight(torch.autograd.Function):
    """Nothing forward; the work of the weight gradient in backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, duration: float, clock: Clock) -> Tensor:
        ctx.duration, ctx.clock = duration, clock
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.work(0.0, ctx.duration)
        return torch.zeros_like(grads[0]), None, None


class _Join(torch.autograd.Function):
    """The output, which depends on input and weight; the gradient's clock passes to the input alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.zeros(())


class ClockedStage(nn.Module):
    """[batch, seq, hidden] → the same; on the last stage a loss, shape [1].

    splits: a gradient is sent on before the weight gradients are made; else after.
    """

    def __init__(self, share: float, last: bool, splits: bool, clock: Clock) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.share, self.last, self.splits, self.clock = share, last, splits, clock

    def forward(self, x: Tensor) -> Tensor:
        anchor = (
            None if x.requires_grad else self.weight
        )  # the first stage's input has no gradient to hang on
        before = BACKWARD_INPUT + (0.0 if self.splits else BACKWARD_WEIGHT)
        y = _Input.apply(x, anchor, before, self.share, self.clock)
        after = BACKWARD_WEIGHT * self.share if self.splits else 0.0
        y = _Join.apply(y, _Weight.apply(self.weight, after, self.clock))
        return 0.0 * y.sum()[None] if self.last else y


def clocked(context: Any, schedule: str, count: int) -> tuple[float, float, int]:
    """(when this rank begins, when it ends, most forwards in flight)."""
    layout = resolve(ParallelConfig(pp=context.world, schedule=schedule), context.world)
    mesh = make_mesh(layout, torch.device("cpu"), fsdp=False)
    clock, splits = Clock(), SCHEDULES[schedule].splits_backward
    stages: dict[int, nn.Module] = {
        number: ClockedStage(1 / layout.stages_per_rank, number == layout.stages - 1, splits, clock)
        for number in layout.stages_of(mesh.pp.rank)
    }
    pipeline = Pipeline(stages, [], layout, mesh, torch.device("cpu"), torch.float32)
    pipeline.train([Inputs(torch.zeros(1, 2, 2), {}) for _ in range(count)], lambda output, number: output)
    assert clock.began is not None
    return clock.began, clock.now, clock.most_flying


def bubble(schedule: str, ranks: int) -> float:
    """Time in which the busiest rank does nothing."""
    chunks = SCHEDULES[schedule].stages_per_rank
    return (ranks - 1) * (FORWARD + BACKWARD_INPUT + BACKWARD_WEIGHT) / chunks


def in_flight(schedule: str, rank: int, ranks: int, count: int) -> int:
    chunks = SCHEDULES[schedule].stages_per_rank
    if schedule == "1f1b":
        return min(count, ranks - rank)
    if schedule == "interleaved_1f1b":
        return min(2 * (ranks - rank - 1) + (chunks - 1) * ranks + 1, count * chunks)
    return count * chunks


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize("count", [4, 8])
def test_bubble_and_flight(ranks: Any, schedule: str, count: int) -> None:
    results = ranks(RANKS).run(clocked, schedule, count)
    work = count * (FORWARD + BACKWARD_INPUT + BACKWARD_WEIGHT)
    assert max(end for _, end, _ in results) == pytest.approx(work + bubble(schedule, RANKS))
    assert [flight for _, _, flight in results] == [
        in_flight(schedule, r, RANKS, count) for r in range(RANKS)
    ]


def test_zero_bubble(ranks: Any) -> None:
    """A rank's idle time between its first and last work, since a rank that ends early may go on early."""
    work = MICRO_BATCHES * (FORWARD + BACKWARD_INPUT + BACKWARD_WEIGHT)

    def idle(schedule: str) -> float:
        return max(end - start for start, end, _ in ranks(RANKS).run(clocked, schedule, MICRO_BATCHES)) - work

    waits = (RANKS - 1) * (FORWARD + BACKWARD_INPUT - BACKWARD_WEIGHT)
    assert idle("interleaved_zero_bubble") <= waits / 2
    assert idle("zbv_zero_bubble") == 0.0  # (ranks - 1) · (F + B - 2W), and the three are equal here
    assert idle("dualpipe_v") <= waits
