"""What a step sends on each axis next to its formula, as `verify --comms` shows it; layouts of all kinds."""

from types import SimpleNamespace
from typing import Any

import pytest

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from runs import SEQ, Case, build, micro_batches
from trainer.models.decoder.config import DecoderConfig
from trainer.models.tuned.config import FinetuneConfig
from trainer.objectives.config import CausalLMConfig
from trainer.verify import traffic

MODEL = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 4, "ffn_hidden": 128}


def sent(context: Any, case: Case) -> dict[str, tuple[float, float]]:
    """Axis → (bytes sent in the second step, the formula's)."""
    engine = build(case, context.rank, context.world)

    def step(number: int) -> None:
        engine.step(micro_batches(case, number, engine.data_rank, engine.data_ranks), lr=1e-3)

    step(0)
    with traffic.counter(engine) as counter:
        step(1)
    cfg: Any = SimpleNamespace(
        parallel=ParallelConfig(**case.parallel),
        model=DecoderConfig(**MODEL),
        train=SimpleNamespace(
            precision=case.precision, global_batch=case.global_batch, micro_batch=case.micro_batch
        ),
        objective=CausalLMConfig(),
        finetune=FinetuneConfig(),
        row_length=SEQ,
    )
    layout = resolve(cfg.parallel, context.world)
    rows = traffic.rows(counter, engine, cfg, layout, context.rank)
    return {row["axis"]: (row["sent_bytes"], row["formula_bytes"]) for row in rows if "formula_bytes" in row}


@pytest.mark.parametrize(
    ("world", "parallel", "precision", "axes"),
    [
        pytest.param(2, {"pp": 2}, "fp32", {"pp"}, marks=pytest.mark.slow),
        (2, {"pp": 2, "schedule": "zbv_zero_bubble"}, "bf16", {"pp"}),
        pytest.param(
            4,
            {"pp": 2, "zero": 1, "schedule": "interleaved_1f1b"},
            "fp32",
            {"pp", "data"},
            marks=pytest.mark.slow,
        ),
        (4, {"pp": 2, "zero": 2, "schedule": "zbv_zero_bubble"}, "fp32", {"pp", "data"}),
        pytest.param(4, {"pp": 2, "zero": 3}, "bf16", {"pp", "data"}, marks=pytest.mark.slow),
        (4, {"pp": 2, "tp": 2, "schedule": "dualpipe_v"}, "fp32", {"pp", "tp"}),
        (4, {"cp": 2, "tp": 2, "zero": 2}, "fp32", {"cp", "tp", "data"}),
        (4, {"cp": 2, "pp": 2, "zero": 1}, "fp32", {"cp", "pp", "data"}),
        pytest.param(
            4, {"dp_replicate": 2, "dp_shard": 2, "zero": 2}, "fp32", {"data"}, marks=pytest.mark.slow
        ),
        (4, {"dp_replicate": 2, "dp_shard": 2, "zero": 3, "recompute": "full"}, "fp32", {"data"}),
        pytest.param(
            4, {"dp_replicate": 2, "dp_shard": 2, "zero": 0}, "fp32", {"data"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_every_axis_sends_what_its_formula_says(
    ranks: Any, world: int, parallel: dict[str, Any], precision: str, axes: set[str]
) -> None:
    case = Case(parallel=parallel, model=MODEL, micro_batch=1, precision=precision)
    for found in ranks(world).run(sent, case):
        assert set(found) == axes
        for axis, (seen, formula) in found.items():
            least, most = 0.99, 1.01
            if axis == "tp":  # the softmax's three numbers a row, and the norms' gradients
                most = 1.1
            elif (
                axis == "data" and parallel.get("zero") == 3
            ):  # backward starts with the head, still gathered
                least = 0.97
            assert least * formula <= seen <= most * formula, (axis, seen / formula)
