"""The arithmetic of a layout: sizes of the mesh axes, which rank is where, what must divide. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import prod

from parallel.config import ParallelConfig, PipelineSchedule, Zero
from parallel.layout.cuts import cut_blocks


@dataclass(frozen=True)
class ScheduleTraits:
    """What a pipeline schedule needs of a layout.

    upstream: its class in torch.distributed.pipelining.
    stages_per_rank: the default; a schedule with 1 runs with no other number.
    v_shaped: pipeline rank r holds stages r and 2·pp-1-r.
    splits_backward: input gradients and weight gradients are computed apart (zero bubble).
    """

    upstream: str
    stages_per_rank: int
    v_shaped: bool = False
    splits_backward: bool = False


SCHEDULES: dict[PipelineSchedule, ScheduleTraits] = {
    "gpipe": ScheduleTraits("ScheduleGPipe", 1),
    "1f1b": ScheduleTraits("Schedule1F1B", 1),
    "interleaved_1f1b": ScheduleTraits("ScheduleInterleaved1F1B", 2),
    "looped_bfs": ScheduleTraits("ScheduleLoopedBFS", 2),
    "interleaved_zero_bubble": ScheduleTraits("ScheduleInterleavedZeroBubble", 2, splits_backward=True),
    "zbv_zero_bubble": ScheduleTraits("ScheduleZBVZeroBubble", 2, v_shaped=True, splits_backward=True),
    "dualpipe_v": ScheduleTraits("ScheduleDualPipeV", 2, v_shaped=True, splits_backward=True),
}


@dataclass(frozen=True)
class Place:
    """A rank's index on every axis of the mesh, from the outermost axis to the innermost."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int


@dataclass(frozen=True)
class Layout:
    """A resolved layout: every axis has its size, and their product is the world.

    Rank arithmetic has its home here: nothing else computes a rank from sizes. Ranks are numbered row by
    row over the axes of `Place`, tp fastest; `mesh` has a picture.
    """

    world: int
    dp_replicate: int
    dp_shard: int
    tp: int
    pp: int
    zero: Zero
    schedule: PipelineSchedule
    stages_per_rank: int
    cp: int = 1

    @property
    def dp(self) -> int:
        """Data ranks: how many ways the global batch is divided."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages(self) -> int:
        return self.pp * self.stages_per_rank

    def place_of(self, rank: int) -> Place:
        """The indices of a rank of the world."""
        indices: list[int] = []
        for size in (self.tp, self.cp, self.dp_shard, self.dp_replicate, self.pp):
            rank, index = divmod(rank, size)
            indices.append(index)
        return Place(*reversed(indices))

    def rank_at(self, place: Place) -> int:
        """The rank of the world that has these indices."""
        rank = place.pp
        rank = rank * self.dp_replicate + place.dp_replicate
        rank = rank * self.dp_shard + place.dp_shard
        rank = rank * self.cp + place.cp
        return rank * self.tp + place.tp

    def size_of(self, axes: Sequence[str]) -> int:
        """How many ranks differ on these fields of `Place` alone."""
        return prod(getattr(self, axis) for axis in axes)

    def ranks_along(self, rank: int, axes: Sequence[str]) -> list[int]:
        """The ranks that differ from `rank` on these fields of `Place` alone, in ascending order."""
        place = self.place_of(rank)
        indices = product(*(range(getattr(self, axis)) for axis in axes))
        return sorted(self.rank_at(replace(place, **dict(zip(axes, at)))) for at in indices)

    def number_apart(self, rank: int, axes: Sequence[str]) -> int:
        """Which of the world / `size_of(axes)` sets of `ranks_along` the rank is in: 0, 1, …"""
        place, number = self.place_of(rank), 0
        for field in fields(Place):
            if field.name not in axes:
                number = number * getattr(self, field.name) + getattr(place, field.name)
        return number

    def data_rank(self, rank: int) -> int:
        """Which part of the global batch a rank of the world reads: 0 … dp - 1."""
        place = self.place_of(rank)
        return place.dp_replicate * self.dp_shard + place.dp_shard

    def is_first_of_data_rank(self, rank: int) -> bool:
        """Whether a rank is the first of those that read the same rows: one in every data rank."""
        place = self.place_of(rank)
        return place.pp == place.cp == place.tp == 0

    def micro_batches(self, global_batch: int, micro_batch: int) -> int:
        """Micro-batches of one data rank in one optimiser step."""
        return global_batch // (self.dp * micro_batch)

    def stages_of(self, pp_index: int) -> tuple[int, ...]:
        """The numbers of the stages that a pipeline rank holds, in the order of the model."""
        if self._v_shaped:
            return (pp_index, 2 * self.pp - 1 - pp_index)
        return tuple(range(pp_index, self.stages, self.pp))

    def pp_index_of(self, stage: int) -> int:
        """The pipeline rank that holds a stage."""
        if self._v_shaped:
            return min(stage, 2 * self.pp - 1 - stage)
        return stage % self.pp

    @property
    def _v_shaped(self) -> bool:
        return self.pp > 1 and SCHEDULES[self.schedule].v_shaped

    def __str__(self) -> str:
        dp = f"dp{self.dp_replicate}x{self.dp_shard}" if self.dp_replicate > 1 else f"dp{self.dp_shard}"
        pipeline = f" pp{self.pp} {self.schedule}" if self.pp > 1 else ""
        context = f" cp{self.cp}" if self.cp > 1 else ""
        return f"{dp} zero{self.zero}{context} tp{self.tp}{pipeline}"


def resolve(cfg: ParallelConfig, world: int) -> Layout:
    """Sizes of every mesh axis for `world` ranks. ValueError names the key and the arithmetic that fails."""
    sizes = _fill_axes(cfg, world)
    traits = SCHEDULES[cfg.schedule]
    if sizes["pp"] == 1:
        stages_per_rank = 1
    else:
        stages_per_rank = cfg.stages_per_rank or traits.stages_per_rank
        _check_schedule(cfg, traits, stages_per_rank)
    return Layout(world=world, zero=cfg.zero, schedule=cfg.schedule, stages_per_rank=stages_per_rank, **sizes)


def _fill_axes(cfg: ParallelConfig, world: int) -> dict[str, int]:
    sizes = {axis: getattr(cfg, axis) for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp")}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(
            f"parallel.{open_axes[0]} and parallel.{open_axes[1]} are both -1: only one can be what is left"
        )
    known = 1
    for size in sizes.values():
        known *= 1 if size == -1 else size
    product = " · ".join(f"{axis} {size}" for axis, size in sizes.items() if size != -1)
    if (open_axes and world % known == 0) or known == world:
        return sizes | dict.fromkeys(open_axes, world // known)
    asked = ", ".join(f"parallel.{axis}={size}" for axis, size in sizes.items() if size not in (-1, 1))
    whole = world // known * known
    if not open_axes:
        ranks = f"{world} rank{'s' * (world > 1)}"
        wrong = f"but the world has {ranks}: start with --nproc {known}, or set dp_shard to -1"
    elif not whole:
        here = "1 process" if world == 1 else f"{world} processes"
        wrong = f"and this is {here}: start with --nproc {known}"
    else:
        wrong = (
            f"which does not divide the world of {world} ranks: start with --nproc {whole} or {whole + known}"
        )
    raise ValueError(f"{asked}: {product} = {known}, {wrong}")


def _check_schedule(cfg: ParallelConfig, traits: ScheduleTraits, stages_per_rank: int) -> None:
    if traits.stages_per_rank == 1 and stages_per_rank != 1:
        raise ValueError(
            f"parallel.stages_per_rank={stages_per_rank}: {cfg.schedule} holds one stage a rank; "
            "leave it at 0, or set schedule to interleaved_1f1b"
        )
    if (traits.stages_per_rank > 1 and stages_per_rank < 2) or (traits.v_shaped and stages_per_rank != 2):
        raise ValueError(f"parallel.stages_per_rank={stages_per_rank}: {cfg.schedule} needs 2 stages a rank")


def check_stages(layout: Layout, *, blocks: int, key: str, cut: str) -> None:
    """Raise a ValueError with the arithmetic where a list of blocks cannot be cut into the layout's stages.

    blocks: how many there are.
    key: the config key that says so.
    cut: `parallel.cut`; see `cut_blocks`.
    """
    if layout.stages > blocks:
        raise ValueError(_too_many_stages(layout, blocks, key))
    cut_blocks(cut, [1.0] * blocks, layout.stages, key=key)


def _too_many_stages(layout: Layout, blocks: int, key: str) -> str:
    told = f"{key}={blocks} cannot fill {layout.stages} pipeline stages"
    if layout.stages_per_rank == 1:
        return f"{told}: lower parallel.pp"
    told += (
        f" (parallel.pp={layout.pp} · {layout.stages_per_rank} a rank, parallel.schedule={layout.schedule})"
    )
    remedies = [f"raise {key} to {layout.stages} or more"]
    if layout.pp <= blocks:
        remedies.append("set parallel.schedule to 1f1b, which has one stage a rank")
    return f"{told}: lower parallel.pp, or {', or '.join(remedies)}"


def check_batch(layout: Layout, *, global_batch: int, micro_batch: int, positions: int) -> int:
    """Micro-batches a data rank runs in one step; ValueError if the batch does not divide that way.

    positions: of a row in the model's hidden states.
    """
    per_round = layout.dp * micro_batch
    if global_batch % per_round:
        raise ValueError(
            f"train.global_batch={global_batch} is not divisible by "
            f"{layout.dp} data ranks · train.micro_batch={micro_batch} = {per_round}: "
            f"set train.global_batch to a multiple of {per_round}, or change the ranks or train.micro_batch"
        )
    if positions % (layout.tp * layout.cp):
        raise ValueError(
            f"data.seq_len gives rows of {positions} positions, not divisible by parallel.tp={layout.tp} · "
            f"parallel.cp={layout.cp}, which share each row: change one of them"
        )
    count = global_batch // per_round
    if layout.pp > 1:
        _check_micro_batches(layout, count, global_batch, micro_batch)
    return count


def _check_micro_batches(layout: Layout, count: int, global_batch: int, micro_batch: int) -> None:
    per_round = f"{layout.dp} data ranks · train.micro_batch={micro_batch}"
    arithmetic = f"train.global_batch={global_batch} / ({per_round}) = {count}"
    needed = {"1f1b": layout.pp, "dualpipe_v": layout.stages}.get(layout.schedule, 1)
    if count < needed:
        raise ValueError(
            f"parallel.schedule={layout.schedule} needs at least {needed} micro-batches a step, and "
            f"{arithmetic}: lower train.micro_batch, or set schedule to gpipe"
        )
    if layout.schedule in ("interleaved_1f1b", "interleaved_zero_bubble"):
        rounds = max(1, count // layout.pp)
        if count % rounds:
            raise ValueError(
                f"parallel.schedule={layout.schedule} needs micro-batches in whole rounds of pp={layout.pp}, "
                f"and {arithmetic}: change train.global_batch or train.micro_batch"
            )
