"""Deterministic algorithms, and a check that there is no chance in a forward pass."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from data.stream.batch import Batch
from parallel.engine import Engine

WITHOUT = "--any-algorithm goes on without deterministic algorithms"


@contextmanager
def deterministic(seed: int, *, wanted: bool) -> Iterator[None]:
    """While the context lasts, torch uses deterministic algorithms only, and raises where an operator has
    none; the global generators begin with `seed`.

    On CUDA, cuBLAS also wants CUBLAS_WORKSPACE_CONFIG before it starts: `germinal` sets the variable.

    wanted: False: only the generators are seeded.
    """
    torch.manual_seed(seed)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted and before[1]
    try:
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):  # torch's own text names the operator
            error.add_note(WITHOUT)
        raise
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def anomaly_detection(*, wanted: bool, has_loss_scale: bool) -> Iterator[None]:
    """While the context lasts, autograd keeps the forward line of each backward function, and raises at the
    first one that returns a NaN.

    has_loss_scale: a NaN is no fault by itself (fp16), so only the lines are kept.
    """
    if not wanted:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly(check_nan=not has_loss_scale):
            yield


def chance(engine: Engine, batches: Sequence[Batch]) -> str:
    """Run forward over the batches twice. Return how the losses differ; "" where they are the same to the
    last bit. Collective.
    """
    once, again = (engine.evaluate(batches).loss_sum for _ in range(2))
    if once == again or (once != once and again != again):
        return ""
    return f"two forward passes over the same batch gave the loss sums {once!r} and {again!r}"
