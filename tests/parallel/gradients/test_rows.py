"""ZeRO-1 and replicas on a CPU: whatever goes together in a message, and however rows divide."""

from typing import Any

import pytest

from parallel.gradients import replicas, rows
from runs import Case, build, curve, distance, micro_batches, reference

# Over 4 ranks: 50 rows are 13, 13, 13, 11; 6 are 2, 2, 2, 0; 130 are 33, 33, 33, 31.
UNEVEN = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130, "layers": 2}


def curve_with(context: Any, case: Case, bucket: int) -> list[tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "BUCKET_BYTES", bucket)
        patch.setattr(rows, "IN_FLIGHT_BYTES", bucket)
        return curve(context, case)


# A block's norms have 24 to 144 bytes, its matrices 1 to 7 kB.
@pytest.mark.parametrize("bucket", [0, 6000], ids=["each-alone", "mixed"])
@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "tied"])
@pytest.mark.parametrize("zero", [0, 1])
def test_buckets_leave_no_trace(ranks: Any, zero: int, tied: bool, bucket: int) -> None:
    sizes = {**UNEVEN, "tie_embeddings": tied}
    case = Case(parallel={"zero": zero}, model=sizes, micro_batch=1, steps=5)
    curves = ranks(4).run(curve_with, case, bucket)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < 1e-5


def in_small_buckets(context: Any, patch: pytest.MonkeyPatch, micro_batch: int) -> Any:
    """The engine of a model of many blocks after a step, with buckets of 16 KiB, two of them under way."""
    patch.setattr(replicas, "BUCKET_BYTES", 16 << 10)
    patch.setattr(rows, "IN_FLIGHT_BYTES", 32 << 10)
    case = Case(parallel={"zero": 1}, model={"layers": 16}, micro_batch=micro_batch)
    engine: Any = build(case, context.rank, context.world)
    engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
    return engine


def whole_gradients(context: Any) -> tuple[int, int]:
    """(most bytes of whole gradients when a bucket of them is sent, those of the model)."""
    most = 0
    with pytest.MonkeyPatch.context() as patch:
        own = rows.Rows._reduce

        def counted(self: rows.Rows, number: int) -> None:
            nonlocal most
            held = [parameter.grad for parameter in self._parameters]
            most = max(most, sum(grad.nbytes for grad in held if grad is not None))
            own(self, number)

        patch.setattr(rows.Rows, "_reduce", counted)
        engine = in_small_buckets(context, patch, micro_batch=4)
    return most, sum(parameter.nbytes for parameter in engine._reductions._parameters)


def under_way(context: Any) -> set[int]:
    """How many messages are under way once the next is sent, where each is more than may be at a time."""
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        own = rows.Rows._reduce

        def counted(self: rows.Rows, number: int) -> None:
            own(self, number)
            found.add(len(self._reducing))

        patch.setattr(rows.Rows, "_reduce", counted)
        patch.setattr(replicas, "BUCKET_BYTES", 0)
        patch.setattr(rows, "IN_FLIGHT_BYTES", 0)
        case = Case(parallel={"zero": 1})
        engine: Any = build(case, context.rank, context.world)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
    return found


def test_a_large_gradient_is_sent_beside_backward_too(ranks: Any) -> None:
    assert ranks(2).run(under_way) == [{1}, {1}]


def test_whole_gradients_end_beside_backward(ranks: Any) -> None:
    """Of one micro-batch: those under way, and a bucket or two that are filling."""
    for most, model in ranks(2).run(whole_gradients):
        assert 0 < most <= (32 + 2 * 16) << 10 < model / 4


def parameters_under_way(context: Any) -> tuple[int, int, int]:
    """(most bytes of parameters whose rows are under way at a time, buckets, bytes of the model)."""
    most = 0
    with pytest.MonkeyPatch.context() as patch:
        own = rows.Rows._gather_ahead

        def counted(self: rows.Rows) -> None:
            nonlocal most
            own(self)
            most = max(most, sum(exchange.bucket.nbytes for exchange in self._gathering))

        patch.setattr(rows.Rows, "_gather_ahead", counted)
        engine = in_small_buckets(context, patch, micro_batch=2)
    reductions = engine._reductions
    return most, len(reductions._buckets), sum(parameter.nbytes for parameter in reductions._parameters)


def test_parameters_are_gathered_a_few_ahead(ranks: Any) -> None:
    for most, buckets, model in ranks(4).run(parameters_under_way):
        assert buckets > 8
        assert 16 << 10 < most <= 32 << 10 < model / 4
