"""Losses by data source: of any layout those of one process, and together the whole loss."""

from typing import Any

import pytest

from runs import Alone, Case, build, micro_batches

STEPS = 3
Found = list[tuple[float, float, tuple[tuple[float, float], ...]]]


def by_source(context: Any, case: Case) -> Found:
    """(loss sum, count, the same by source) of every step."""
    engine = build(case, context.rank, context.world)
    found = []
    for step in range(STEPS):
        result = engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=1e-3)
        found.append((result.loss_sum, result.count, result.sources))
    engine.close()
    return found


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 3}),
        (2, {"tp": 2}),
        (2, {"pp": 2, "schedule": "gpipe"}),
        (4, {"cp": 2, "pp": 2}),
        (2, {"engine": "deepspeed", "zero": 1}),
    ],
    ids=["zero3", "tp", "pp", "cp-pp", "deepspeed"],
)
def test_a_layout_leaves_no_trace_in_the_sources_losses(
    ranks: Any, world: int, parallel: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"micro_batch": 2, "sources": 3}
    expected = by_source(Alone(), Case(**settings))
    found = ranks(world).run(by_source, Case(parallel=parallel, **settings))
    assert all(each == found[0] for each in found)
    for (loss, count, sources), (whole, number, parts) in zip(found[0], expected):
        assert loss == pytest.approx(whole, rel=1e-5) and count == number
        assert [part[1] for part in sources] == [part[1] for part in parts]
        assert [part[0] for part in sources] == pytest.approx([part[0] for part in parts], rel=1e-5)
        assert sum(part[0] for part in sources) == pytest.approx(loss, rel=1e-12)
        assert sum(part[1] for part in sources) == count and len(sources) == 3
