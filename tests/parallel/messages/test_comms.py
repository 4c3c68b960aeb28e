"""Messages of one step: how many, of how many bytes, against the formulas."""

from typing import Any

import pytest

from parallel.gradients import fsdp, replicas
from parallel.messages.comms import CommCounter, Traffic, data_bytes, tensor_bytes
from parallel.torch_engine.engine import TorchEngine
from runs import SEQ, Case, build, micro_batches

MODEL = {"hidden": 64, "ffn_hidden": 128, "heads": 4, "kv_heads": 4, "layers": 4, "vocab": 128}


def traffic(context: Any, parallel: dict[str, Any], micro_batch: int) -> tuple[dict[Any, Traffic], int]:
    """What the second step sends, and how many parameters this rank's part of the model has before ZeRO."""
    case = Case(parallel=parallel, model=MODEL, micro_batch=micro_batch)
    engine = build(case, context.rank, context.world)
    assert isinstance(engine, TorchEngine)

    def read(step: int) -> Any:
        return micro_batches(case, step, engine.data_rank, engine.data_ranks)

    engine.step(read(0), lr=1e-3)
    with CommCounter(engine.axes) as counter:
        engine.step(read(1), lr=1e-3)
    return dict(counter.traffic), sum(
        _numel(chunk.shape) for chunk in engine.chunks() if chunk.name[:5] == "model"
    )


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def total(found: dict[Any, Traffic], axis: str) -> float:
    return sum(entry.sent_bytes for (name, _), entry in found.items() if name == axis)


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_data_axis_sends_what_zero_promises(ranks: Any, world: int, zero: int, micro: int) -> None:
    micro_batch = 8 // world // micro or 1
    found, parameters = ranks(world).run(traffic, {"zero": zero}, micro_batch)[0]
    count = 8 // world // micro_batch
    formula = data_bytes(parameters, ranks=world, zero=zero, micro_batches=count)
    assert total(found, "dp_replicate") + total(found, "dp_shard") <= 1.01 * formula
    if count == 1:
        promised = (3 if zero == 3 else 2) * 4 * parameters * (world - 1) / world
        assert formula == promised
    # The anchor's own formula, for accumulation too: 2Ψ(n-1)/n while gradients are reduced once.
    if zero < 2:
        assert formula == 2 * 4 * parameters * (world - 1) / world


@pytest.mark.parametrize(("world", "parallel"), [(2, {}), (4, {"zero": 3}), (2, {"pp": 2}), (4, {"pp": 2})])
def test_one_blocking_scalar_collective_a_step(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    """Besides it there are gathers, scatters and sends; an axis that spans the world shares its group."""
    for found, _ in ranks(world).run(traffic, parallel, 1):
        (packed,) = [entry for (_, kind), entry in found.items() if kind == "all-reduce"]
        # Loss, count, count without classes' weights, squares, who was asked to stop, who has news: float64.
        assert packed == Traffic(calls=1, sent_bytes=2 * 6 * 8 * (world - 1) / world)


def test_tensor_axis_sends_activations(ranks: Any) -> None:
    found, _ = ranks(2).run(traffic, {"tp": 2}, 2)[0]
    hidden_states = 2 * SEQ * MODEL["hidden"]
    formula = tensor_bytes(hidden_states, ranks=2, blocks=4, micro_batches=4)
    sent = found["tp", "all-gather"].sent_bytes + found["tp", "all-to-all"].sent_bytes  # gloo's scatters
    softmax = 4 * 2 * SEQ * 3 * 4  # peak, mass and target logit of every row
    assert formula <= sent <= formula + softmax
    # The gradients of nine norms and of eight for queries and keys go in one message; and the scalars.
    assert found["tp", "all-reduce"].calls == 2


def test_context_axis_sends_queries_keys_and_values_together(ranks: Any) -> None:
    found, _ = ranks(2).run(traffic, {"cp": 2, "zero": 0}, 2)[0]
    messages = {(axis, kind): entry for (axis, kind), entry in found.items() if axis == "cp"}
    ways = 4  # heads for tokens and back, forward and backward
    assert messages["cp", "all-to-all"].calls == 4 * 4 * ways
    tokens = 2 * SEQ // 2 * MODEL["hidden"]
    swapped = (3 + 1) * 2 * tokens * 4 // 2  # q, k, v and the result; there and back; half stays
    assert messages["cp", "all-to-all"].sent_bytes == 4 * 4 * swapped


def test_pipeline_axis_sends_hidden_states(ranks: Any) -> None:
    found, _ = ranks(2).run(traffic, {"pp": 2}, 2)[0]
    assert found["pp", "send"] == Traffic(calls=4, sent_bytes=4 * 2 * SEQ * MODEL["hidden"] * 4)


@pytest.mark.parametrize(
    "zero", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_schedules_that_split_backward_send_no_more(ranks: Any, zero: int) -> None:
    """Gradients that come in two parts are reduced once a micro-batch, as others are."""
    schedules = "interleaved_1f1b", "zbv_zero_bubble"
    whole, split = (
        ranks(4).run(traffic, {"pp": 2, "zero": zero, "schedule": name}, 1)[0] for name in schedules
    )
    (sent, parameters), (sent_split, parameters_split) = (
        (total(found, "dp_shard"), held) for found, held in (whole, split)
    )
    assert sent_split / parameters_split <= 1.01 * sent / parameters


def under_way(context: Any, zero: int) -> list[int]:
    """Reductions that are not finished whenever one more starts (FSDP); or those started, of how many, when
    backward ends.
    """
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        start, finish = fsdp.LateReduceScatter.__call__, replicas.Arrivals.finish

        def started(self: fsdp.LateReduceScatter, *args: Any, **kwargs: Any) -> None:
            start(self, *args, **kwargs)
            seen.append(len(self._pending))

        def finished(self: replicas.Arrivals) -> None:
            seen.extend([self._started, len(self._buckets)])
            finish(self)

        patch.setattr(fsdp.LateReduceScatter, "__call__", started)
        patch.setattr(replicas.Arrivals, "finish", finished)
        patch.setattr(replicas, "BUCKET_BYTES", 64 << 10)
        case = Case(parallel={"zero": zero}, model=MODEL, micro_batch=2)
        engine = build(case, context.rank, context.world)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
    return seen


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_are_reduced_beside_backward(ranks: Any, zero: int) -> None:
    for seen in ranks(2).run(under_way, zero):
        if zero >= 2:
            modules = 1 + MODEL["layers"] + 1
            assert seen == [1, *[fsdp.IN_FLIGHT] * (modules - 1)] * 2
        else:  # every bucket: embedding, head and each of the blocks fill one at least
            started, buckets = seen
            assert started == buckets >= 2 + MODEL["layers"]
