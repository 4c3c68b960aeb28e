"""The arithmetic of layouts: what divides, what is refused, and that each refusal says why in one line."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.config import ParallelConfig, PipelineSchedule
from parallel.layout.cuts import cut_blocks
from parallel.layout.layout import SCHEDULES, Layout, check_batch, check_stages, resolve

MODEL = {"layers": 4, "heads": 8, "kv_heads": 4, "ffn_hidden": 64, "vocab": 256}


def refused(cfg: dict[str, Any], world: int) -> str:
    with pytest.raises(ValueError) as error:
        resolve(ParallelConfig(**cfg), world)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_minus_one_is_what_is_left() -> None:
    layout = resolve(ParallelConfig(dp_replicate=2, tp=2, pp=2), 16)
    assert (layout.dp_shard, layout.dp, layout.world) == (2, 4, 16)
    assert resolve(ParallelConfig(dp_shard=2, tp=-1), 8).tp == 4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_pipeline_no_schedule_cuts(schedule: str) -> None:
    """`verify`'s one process has the user's schedule and no pipeline."""
    layout = resolve(ParallelConfig(schedule=schedule), 1)
    assert layout.stages == 1 and layout.stages_of(0) == (0,) and layout.pp_index_of(0) == 0


@pytest.mark.parametrize(
    ("cfg", "world", "words"),
    [
        (
            {"tp": 3},
            4,
            "pp 1 = 3, which does not divide the world of 4 ranks: start with --nproc 3 or 6",
        ),
        ({"tp": 2}, 1, "tp 2 · pp 1 = 2, and this is 1 process: start with --nproc 2"),
        (
            {"tp": 2, "pp": 2},
            3,
            "parallel.tp=2, parallel.pp=2: ",
        ),
        ({"tp": 2, "pp": 2}, 3, "and this is 3 processes: start with --nproc 4"),
        ({"dp_shard": 2, "tp": 3}, 4, "= 6, but the world has 4 ranks: start with --nproc 6"),
        ({"dp_shard": 2}, 1, "= 2, but the world has 1 rank: start with --nproc 2"),
        ({"dp_shard": 1}, 2, "= 1, but the world has 2 ranks: start with --nproc 1"),
        ({"tp": -1}, 4, "only one"),
        ({"pp": 2, "stages_per_rank": 2}, 2, "1f1b holds one stage a rank"),
        ({"pp": 2, "schedule": "interleaved_1f1b", "stages_per_rank": 1}, 2, "needs 2 stages"),
        ({"pp": 2, "schedule": "dualpipe_v", "stages_per_rank": 4}, 2, "needs 2 stages"),
    ],
)
def test_impossible_layouts(cfg: dict[str, Any], world: int, words: str) -> None:
    assert words in refused(cfg, world)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"pp": 3}, "model.layers=4 is not divisible by 3 pipeline stages"),
        ({"pp": 8}, "model.layers=4 cannot fill 8"),
        (
            {"pp": 4, "schedule": "interleaved_1f1b"},
            r"cannot fill 8 pipeline stages \(parallel.pp=4 · 2 a rank, parallel.schedule=interleaved_1f1b"
            r"\): lower parallel.pp, or raise model.layers to 8 or more, or set parallel.schedule to 1f1b",
        ),
        (
            {"pp": 6, "schedule": "interleaved_1f1b"},
            r"interleaved_1f1b\): lower parallel.pp, or raise model.layers to 12 or more$",
        ),
    ],
)
def test_blocks_that_do_not_divide(cfg: dict[str, Any], words: str) -> None:
    layout = resolve(ParallelConfig(**cfg), 24)
    with pytest.raises(ValueError, match=words):
        check_stages(layout, blocks=4, key="model.layers", cut="even")


def test_batches_that_do_not_divide() -> None:
    layout = resolve(ParallelConfig(), 4)
    assert check_batch(layout, global_batch=32, micro_batch=2, positions=64) == 4
    with pytest.raises(ValueError, match=r"global_batch=30 .* 4 data ranks · train.micro_batch=2 = 8"):
        check_batch(layout, global_batch=30, micro_batch=2, positions=64)
    with pytest.raises(ValueError, match=r"rows of 65 positions, not divisible by parallel.tp=2"):
        check_batch(resolve(ParallelConfig(tp=2), 2), global_batch=2, micro_batch=1, positions=65)
    with pytest.raises(ValueError, match="needs at least 4 micro-batches"):
        check_batch(resolve(ParallelConfig(pp=4), 4), global_batch=4, micro_batch=2, positions=64)
    layout = resolve(ParallelConfig(pp=2, schedule="interleaved_1f1b"), 2)
    with pytest.raises(ValueError, match="whole rounds of pp=2"):
        check_batch(layout, global_batch=5, micro_batch=1, positions=64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 4])
def test_every_stage_has_one_rank(schedule: str, pp: int) -> None:
    layout = resolve(ParallelConfig(pp=pp, schedule=schedule), pp)
    for rank in range(pp):
        for stage in layout.stages_of(rank):
            assert layout.pp_index_of(stage) == rank
    assert sorted(s for rank in range(pp) for s in layout.stages_of(rank)) == list(range(layout.stages))


def test_every_schedule_that_can_be_asked_for_is_planned() -> None:
    assert get_args(PipelineSchedule) == tuple(SCHEDULES)


def test_cuts() -> None:
    assert cut_blocks("even", [1.0] * 4, 2) == [range(2), range(2, 4)]
    assert cut_blocks("3,1", [1.0] * 4, 1) == [range(4)]  # one process's, of the same config
    assert cut_blocks("3,1", [1.0] * 4, 2) == [range(3), range(3, 4)]
    # The head weighs as much as three blocks, so the last stage gets fewer.
    assert cut_blocks("cost", [1.0] * 9, 3, last=3.0) == [range(4), range(4, 8), range(8, 9)]
    assert cut_blocks("cost", [1.0] * 4, 2, first=2.0) == [range(1), range(1, 4)]
    for cut, words in (
        ("even", "to cost"),
        ("2,2,1", "2 numbers"),
        ("4,2", "sum to 6"),
    ):
        with pytest.raises(ValueError, match=words):
            cut_blocks(cut, [1.0] * 5, 2)


@settings(deadline=None)  # a busy machine is no fault of the cut
@given(
    costs=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    stages=st.integers(1, 4),
    first=st.integers(0, 30),
    last=st.integers(0, 30),
)
def test_cut_by_cost_is_the_best_cut(costs: list[int], stages: int, first: int, last: int) -> None:
    if stages > len(costs):
        return
    found = cut_blocks("cost", [float(c) for c in costs], stages, first=float(first), last=float(last))
    assert [block for stage in found for block in stage] == list(range(len(costs)))
    assert all(len(stage) for stage in found)

    def largest(cuts: list[range]) -> int:
        loads = [sum(costs[block] for block in stage) for stage in cuts]
        loads[0] += first
        loads[-1] += last
        return max(loads)

    def every_cut(start: int, left: int) -> list[list[range]]:
        if left == 1:
            return [[range(start, len(costs))]]
        ends = range(start + 1, len(costs) - left + 2)
        return [[range(start, end), *rest] for end in ends for rest in every_cut(end, left - 1)]

    assert largest(found) == min(largest(cuts) for cuts in every_cut(0, stages))


def test_layout_reads_as_text() -> None:
    layout = Layout(16, 2, 2, 2, 2, 3, "1f1b", 1)
    assert str(layout) == "dp2x2 zero3 tp2 pp2 1f1b"
