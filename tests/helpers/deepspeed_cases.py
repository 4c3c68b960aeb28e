"""Tiny runs on the DeepSpeed engine, for the tests of its curve, its state and its step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from parallel.engine import Engine
from runs import Case, build, train

TOLERANCE = 1e-5
STEPS = 6
OFFLOADED = {"zero": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
LAYOUTS: list[dict[str, Any]] = [
    *({"zero": zero} for zero in (0, 1, 2, 3)),
    {"zero": 1, "offload_optimizer": "cpu"},
    {"zero": 2, "offload_optimizer": "cpu"},
    OFFLOADED,
]


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def deepspeed(parallel: dict[str, Any], **kwargs: Any) -> Case:
    return Case(**{"micro_batch": 2, "parallel": {"engine": "deepspeed", **parallel}, **kwargs})


@contextmanager
def engine_of(context: Any, case: Case) -> Iterator[Engine]:
    engine = build(case, context.rank, context.world)
    try:
        yield engine
    finally:
        engine.close()


def curve(context: Any, case: Case) -> list[tuple[float, float]]:
    with engine_of(context, case) as engine:
        return train(engine, case)
