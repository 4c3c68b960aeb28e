"""torch.compile on a CPU, by a backend without code generation: what is traced, how often, and the curve."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from parallel.transforms import async_tensor, recompute
from runs import Alone, Case, build, curve, distance, micro_batches, reference

TOLERANCE = 1e-5


def compiled(context: Any, case: Case) -> tuple[list[tuple[float, float]], int, int]:
    """(curve, graphs of blocks and head, graph breaks), an evaluation included."""
    torch._dynamo.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(async_tensor, "check", lambda *_, **__: None)
        patch.setattr(recompute, "compile_backend", lambda wanted, device: "aot_eager" if wanted else None)
        found = curve(context, case)
        engine = build(case, context.rank, context.world)
        engine.evaluate(micro_batches(case, 0, engine.data_rank, engine.data_ranks))
    return found, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


# "every:2" has blocks of both kinds, recomputed and not.
@pytest.mark.parametrize(
    "kind", ["every:2", *(pytest.param(k, marks=pytest.mark.slow) for k in ("none", "full", "selective"))]
)
def test_one_graph_serves_all_blocks(kind: str) -> None:
    """With a graph a block, torch would give up after eight and run the rest eagerly, without a word."""
    case = Case(
        parallel={"compile": True, "recompute": kind},
        model={"layers": 10},
        precision="bf16",
        micro_batch=4,
        steps=2,
    )
    found, graphs, breaks = compiled(Alone(), case)
    kinds = 2 if kind == "every:2" else 1
    # Training and evaluation, of a block; and of the head's two passes, of which evaluation needs the first.
    assert graphs == 2 * kinds + 2
    assert breaks == 0
    assert distance(found, reference(case)) < 2e-2


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        pytest.param(2, {"zero": 0}, marks=pytest.mark.slow),
        pytest.param(2, {"zero": 1}, marks=pytest.mark.slow),
        (2, {"zero": 3, "recompute": "full"}),
        pytest.param(2, {"tp": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"tp": 2, "async_tp": True}, marks=pytest.mark.slow),
        pytest.param(2, {"tp": 2, "async_tp": True, "recompute": "full"}, marks=pytest.mark.slow),
        pytest.param(2, {"tp": 2, "async_tp": True, "recompute": "selective"}, marks=pytest.mark.slow),
        (2, {"cp": 2, "recompute": "selective"}),
        (2, {"pp": 2}),
    ],
    ids=[
        "zero0",
        "zero1",
        "zero3-full",
        "tp2",
        "async-tp2",
        "async-tp2-full",
        "async-tp2-selective",
        "cp2-selective",
        "pp2",
    ],
)
def test_layout_leaves_no_trace(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    case = Case(parallel={**parallel, "compile": True}, micro_batch=1 if "pp" in parallel else 2, steps=5)
    for found, graphs, breaks in ranks(world).run(compiled, case):
        assert distance(found, reference(case)) < TOLERANCE
        assert breaks == 0
        assert graphs <= 4  # block and head, in training and in evaluation


def test_a_cpu_runs_eagerly() -> None:
    """Compiling gains nothing there."""
    torch._dynamo.reset()
    counters.clear()
    case = Case(parallel={"compile": True}, steps=1)
    assert curve(Alone(), case) == curve(Alone(), replace(case, parallel={}))
    assert counters["stats"]["unique_graphs"] == 0
