"""Asynchronous tensor parallelism on plain collectives: the curve; and what torch's own operators mean."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import _symmetric_memory as symmetric
from torch.utils.checkpoint import CheckpointPolicy

from parallel.layout.mesh import Axis
from parallel.transforms import async_tensor, recompute
from runs import Case, curve, distance, reference

TOLERANCE = 1e-5


def anywhere(context: Any, case: Case) -> list[tuple[float, float]]:
    """The curve of a run that is not asked whether its devices reach each other's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(async_tensor, "check", lambda *_, **__: None)
        calls: list[str] = []
        for name in ("gather_products", "product_scatter"):
            own = getattr(async_tensor, name)
            patch.setattr(async_tensor, name, lambda *a, own=own, name=name: (calls.append(name), own(*a))[1])
        found = curve(context, case)
        assert {"gather_products", "product_scatter"} <= set(calls)
        return found


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"tp": 2}),
        pytest.param(4, {"tp": 4}, marks=pytest.mark.slow),
        pytest.param(4, {"tp": 2, "zero": 3, "recompute": "full"}, marks=pytest.mark.slow),
        (4, {"tp": 2, "cp": 2, "recompute": "selective"}),
        (4, {"tp": 2, "pp": 2, "schedule": "zbv_zero_bubble", "recompute": "every:2"}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_it_leaves_no_trace(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    micro = 1 if "pp" in parallel else 2
    case = Case(parallel={**parallel, "async_tp": True}, model={"kv_heads": 4}, micro_batch=micro, steps=5)
    curves = ranks(world).run(anywhere, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < TOLERANCE


def operators(context: Any) -> list[float]:
    """Ours on a CPU against torch's reference of the two operators: largest difference of each result."""
    torch.manual_seed(context.rank)
    group = dist.group.WORLD
    assert group is not None
    x, y = torch.randn(3, 4, 10), torch.randn(3, 8, 5)
    factors = [torch.randn(10, 6), torch.randn(10, 7)]
    ours, our_products = async_tensor.gather_products(x, factors, group)
    whole, products = symmetric._fused_all_gather_matmul_fallback(x, factors, 1, group.group_name)
    assert whole is not None
    pairs = [(ours, whole), *zip(our_products, products)]
    scattered = async_tensor.product_scatter(y, torch.ones(5, 9), group)
    parts = [torch.empty(3, 8, 5) for _ in range(context.world)]
    dist.all_gather(parts, y)
    mine = slice(context.rank * 4, context.rank * 4 + 4)
    pairs.append((scattered, sum(part @ torch.ones(5, 9) for part in parts)[:, mine]))
    return [float((a - b).abs().max()) for a, b in pairs]


def shapes_on_a_gpu(context: Any) -> list[tuple[str, tuple[int, ...]]]:
    """What the two operators give for tensors that only seem to be on a GPU."""
    group = dist.group.WORLD
    assert group is not None
    with FakeTensorMode():
        x, y = torch.empty(3, 4, 10, device="cuda"), torch.empty(3, 8, 5, device="cuda")
        weights = [torch.empty(6, 10, device="cuda"), torch.empty(7, 10, device="cuda")]
        whole, products = async_tensor.gather_products(x, [weight.T for weight in weights], group)
        results = [whole, *products, async_tensor.product_scatter(y, torch.empty(5, 9, device="cuda"), group)]
        return [(result.device.type, tuple(result.shape)) for result in results]


def test_on_a_gpu_the_operators_are_called(ranks: Any) -> None:
    expected = [(3, 8, 10), (3, 8, 6), (3, 8, 7), (3, 4, 9)]
    assert ranks(2).run(shapes_on_a_gpu) == [[("cuda", shape) for shape in expected]] * 2


def test_the_operators_mean_what_torchs_mean(ranks: Any) -> None:
    for differences in ranks(2).run(operators):
        assert len(differences) == 4 and max(differences) < 1e-5


def test_selective_recomputation_keeps_what_the_operators_give() -> None:
    """They are products; and to run them again is to send again."""
    for operator in (
        torch.ops.symm_mem.fused_all_gather_matmul.default,
        torch.ops.symm_mem.fused_matmul_reduce_scatter.default,
    ):
        assert recompute._policy(None, operator) is CheckpointPolicy.MUST_SAVE
    assert recompute._policy(None, torch.ops.aten.add.Tensor) is CheckpointPolicy.PREFER_RECOMPUTE


def test_a_cpu_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"parallel\.async_tp=true: a cpu has no peer-to-peer") as raised:
        async_tensor.check(torch.device("cpu"), Axis(0, 2, None))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rank", "index", "devices", "capability", "reached", "words"),
    [
        (1, 0, 2, (9, 0), True, "not all on one machine"),
        (0, 1, 2, (9, 0), True, "not all on one machine"),
        (0, 0, 2, (7, 5), True, "needs compute capability 8.0"),
        (0, 0, 2, (9, 0), False, "devices 0 and 1 do not reach"),
        (1, 1, 2, (9, 0), True, ""),
    ],
)
def test_refusals_by_device(
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    index: int,
    devices: int,
    capability: tuple[int, int],
    reached: bool,
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda *_: reached)
    borrowed: list[str] = []
    monkeypatch.setattr(async_tensor, "borrow", lambda package, module, name: borrowed.append(module))
    try:
        async_tensor.check(torch.device("cuda", index), Axis(rank, 2, None))
        message = ""
        assert borrowed == ["torch.distributed._symmetric_memory"], "it defines the operators"
    except ValueError as error:
        message = str(error)
    assert words in message and bool(words) == bool(message)
