"""Pipeline schedules against their published figures: bubble, and micro-batches in flight on each rank.

Stages take a fixed time, in two ways. Counted: activations and gradients carry their sender's clock, and a
stage starts at the later of that and its own rank's, so that figures are exact under any load. And slept,
where messages take their real time.

Formulas: GPipe (Huang et al. 2019, arXiv:1811.06965), 1F1B and interleaved 1F1B (Narayanan et al. 2021,
arXiv:2104.04473), breadth-first (Lamy-Poirier 2023, arXiv:2211.05953), zero bubble (Qi et al. 2023,
arXiv:2401.10241), V-shaped (Qi et al. 2024, arXiv:2405.15362), DualPipeV (DeepSeek-AI 2024,
arXiv:2412.19437).
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.config import ParallelConfig
from parallel.gradients.weight_gradients import DeferredGradients
from parallel.layout.layout import SCHEDULES, resolve
from parallel.layout.mesh import make_mesh
from parallel.pipeline import pipeline

# Of a rank's whole share of the model, for one micro-batch: forward, input gradients, weight gradients.
FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT = 4.0, 4.0, 4.0
WORK = FORWARD + BACKWARD_INPUT + BACKWARD_WEIGHT
UNIT_SECONDS = 0.07  # slept: a message and waking up take some milliseconds on a busy machine


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


class SleepingClock(Clock):
    """The same by the machine's clock, in units from the first work on."""

    unit = 0.0

    def work(self, ready: float, duration: float) -> float:
        start = time.monotonic()
        self.began = start if self.began is None else self.began
        time.sleep(duration * self.unit)
        self.now = (time.monotonic() - self.began) / (self.unit or 1.0)
        return 0.0


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


@dataclass(frozen=True)
class Waiting:
    """A weight gradient's work."""

    clock: Clock
    duration: float
    weight = None

    def run(self) -> None:
        self.clock.work(0.0, self.duration)


class _Weight(torch.autograd.Function):
    """Nothing forward; the work of the weight gradient in backward, or when the schedule has it done."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, duration: float, clock: Clock, gradients: DeferredGradients
    ) -> Tensor:
        ctx.duration, ctx.clock, ctx.gradients = duration, clock, gradients
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        work = Waiting(ctx.clock, ctx.duration)
        if not ctx.gradients.defer(work):
            work.run()
        return torch.zeros_like(grads[0]), None, None, None


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
        self.gradients = DeferredGradients()

    def forward(self, x: Tensor) -> Tensor:
        anchor = (
            None if x.requires_grad else self.weight
        )  # the first stage's input has no gradient to hang on
        before = BACKWARD_INPUT + (0.0 if self.splits else BACKWARD_WEIGHT)
        y = _Input.apply(x, anchor, before, self.share, self.clock)
        after = BACKWARD_WEIGHT * self.share if self.splits else 0.0
        y = _Join.apply(y, _Weight.apply(self.weight, after, self.clock, self.gradients))
        return 0.0 * y.sum()[None] if self.last else y


@dataclass(frozen=True)
class Seen:
    """Of one rank: from its first work to its last, and the most forwards in flight."""

    span: float
    flying: int


def counted(context: Any, schedule: str, count: int) -> Seen:
    clock = Clock()
    run(pipeline_of(context, schedule, clock), count)
    assert clock.began is not None
    return Seen(clock.now - clock.began, clock.most_flying)


def slept(context: Any, count: int) -> dict[str, Seen]:
    """Every schedule in a thread of its own: to sleep takes no processor."""
    clocks = {schedule: SleepingClock() for schedule in SCHEDULES}
    pipelines = {schedule: pipeline_of(context, schedule, clock) for schedule, clock in clocks.items()}
    for schedule, clock in clocks.items():
        run(pipelines[schedule], count)  # what is done once is done
        clock.unit, clock.began, clock.most_flying = UNIT_SECONDS, None, 0
    dist.barrier()
    with ThreadPoolExecutor(len(SCHEDULES)) as threads:
        list(threads.map(lambda schedule: run(pipelines[schedule], count), SCHEDULES))
    return {schedule: Seen(clock.now, clock.most_flying) for schedule, clock in clocks.items()}


def evaluated(context: Any, schedule: str, count: int) -> float:
    """When this rank has done its part of an evaluation; every output has come once, in order."""
    clock, seen = Clock(), []
    made = pipeline_of(context, schedule, clock)
    made.evaluate([Inputs(torch.zeros(1, 2, 2), {})] * count, lambda output, number: seen.append(number))
    assert seen == (list(range(count)) if made.has_last else [])
    return clock.now


def pipeline_of(context: Any, schedule: str, clock: Clock) -> pipeline.Pipeline:
    layout = resolve(ParallelConfig(pp=context.world, schedule=schedule), context.world)
    mesh = make_mesh(layout, torch.device("cpu"), fsdp=False)
    # Of its own, as a mesh axis that spans the world shares the world's.
    mesh = replace(mesh, pp=replace(mesh.pp, group=dist.new_group()))
    splits = SCHEDULES[schedule].splits_backward
    stages: dict[int, nn.Module] = {
        number: ClockedStage(1 / layout.stages_per_rank, number == layout.stages - 1, splits, clock)
        for number in layout.stages_of(mesh.pp.rank)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "defer_weight_gradients", lambda stage: stage.gradients)
        return pipeline.Pipeline(
            stages, lambda shape: shape, layout, mesh, torch.device("cpu"), torch.float32
        )


def run(made: pipeline.Pipeline, count: int) -> None:
    made.train([Inputs(torch.zeros(1, 2, 2), {}) for _ in range(count)], lambda output, number: output)


def bubble(schedule: str, ranks: int) -> float:
    """The longest time in which a rank does nothing between its first and last work."""
    chunks = SCHEDULES[schedule].stages_per_rank
    split = {
        "interleaved_zero_bubble": FORWARD + BACKWARD_INPUT - BACKWARD_WEIGHT,
        "zbv_zero_bubble": FORWARD + BACKWARD_INPUT - 2 * BACKWARD_WEIGHT,
        # Published as a bound, of which torch's schedule stays short: see `assert_bubble`.
        "dualpipe_v": FORWARD + 2 * (BACKWARD_INPUT + BACKWARD_WEIGHT) - 3 * BACKWARD_WEIGHT,
    }
    return (ranks - 1) * split.get(schedule, WORK) / chunks


def in_flight(schedule: str, rank: int, ranks: int, count: int) -> int:
    """Micro-batches times stages of this rank."""
    chunks = SCHEDULES[schedule].stages_per_rank
    most = {
        "1f1b": ranks - rank,
        "interleaved_1f1b": 2 * (ranks - rank - 1) + (chunks - 1) * ranks + 1,
        "interleaved_zero_bubble": 2 * ranks - rank,  # 1F1B's at the last rank, less before it
        "zbv_zero_bubble": 2 * ranks,  # 1F1B's first rank's, on every rank
        "dualpipe_v": 2 * ranks + 1,
    }
    return min(most.get(schedule, count * chunks), count * chunks)


def longest(seen: list[Seen]) -> float:
    return max(one.span for one in seen)


def assert_bubble(schedule: str, count: int, seen: list[Seen], tolerance: float) -> None:
    """The tolerance is relative, of the whole step."""
    expected = count * WORK + bubble(schedule, len(seen))
    assert longest(seen) <= expected * (1 + tolerance), schedule
    if schedule != "dualpipe_v":
        assert longest(seen) >= expected * (1 - tolerance), schedule
    assert [one.flying for one in seen] == [
        in_flight(schedule, rank, len(seen), count) for rank in range(len(seen))
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("world", "count"), [(2, 4), (4, 8), (4, 16)])
def test_bubble_and_flight_counted(ranks: Any, schedule: str, world: int, count: int) -> None:
    assert_bubble(schedule, count, ranks(world).run(counted, schedule, count), tolerance=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("world", "count"), [(2, 4), (4, 16)])
def test_evaluation_keeps_every_rank_busy(ranks: Any, schedule: str, world: int, count: int) -> None:
    """But for the first and the last micro-batch's way through the ranks, which a V makes there and back."""
    way = (world - 1) * FORWARD / (1 if SCHEDULES[schedule].v_shaped else SCHEDULES[schedule].stages_per_rank)
    assert max(ranks(world).run(evaluated, schedule, count)) == pytest.approx(count * FORWARD + way)


@pytest.mark.slow  # a clock on the wall needs a quiet machine; counted, the same holds on any
@pytest.mark.parametrize(("world", "count"), [(2, 4), (4, 8)])
def test_bubble_and_flight_slept(ranks: Any, world: int, count: int) -> None:
    shortest: dict[str, list[Seen]] = {}
    for _ in range(4):  # what else runs on the machine only makes it longer
        results = ranks(world).run(slept, count)
        for schedule in SCHEDULES:
            found = [result[schedule] for result in results]
            if schedule not in shortest or longest(found) < longest(shortest[schedule]):
                shortest[schedule] = found
    for schedule in SCHEDULES:
        assert_bubble(schedule, count, shortest[schedule], tolerance=0.03)
