"""fp8 linear layers: what is refused, and with torchao's emulation on a CPU what they compute."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from parallel.torch_engine import parallelize
from parallel.transforms import float8
from runs import Alone, Case, build, curve, reference

# Of the loss over 10 steps. Operands keep 3 bits behind the point, 2^-4 relative an element, but
# independently, so that sums over many are closer. Measured: 7e-4 to 1.4e-3, where bf16 alone gives 2e-4.
BOUND = 5e-3
SIZES = {"hidden": 64, "ffn_hidden": 96, "heads": 4, "kv_heads": 2}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def check(recipe: str = "rowwise", device: torch.device = CUDA, **changes: Any) -> None:
    float8.check(recipe, device, **{"positions": 4096, **changes})


def test_tokens_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="multiple of 16") as caught:
        check(positions=100)
    assert "\n" not in str(caught.value)


def test_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'germinal\[fp8\]'"):
        check()


@pytest.mark.parametrize(
    ("recipe", "capability", "fits"),
    [
        ("rowwise", (9, 0), True),
        ("rowwise", (8, 9), False),
        ("tensorwise", (8, 9), True),
        ("tensorwise", (8, 0), False),
        ("none", (7, 0), True),
    ],
)
def test_compute_capability(
    monkeypatch: pytest.MonkeyPatch, recipe: str, capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    if fits:
        check(recipe)
    else:
        with pytest.raises(
            ValueError, match=f"a GPU has {capability[0]}.{capability[1]}: set train.fp8=none"
        ):
            check(recipe)


def test_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="a cpu has no fp8"):
        check(device=CPU)


def test_sizes_that_do_not_fit_are_named() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="layer mlp is 64 × 100"):
        float8.convert(nn.ModuleDict({"mlp": nn.Linear(64, 100)}), "rowwise")
    with pytest.raises(ValueError, match="over tp=4"):
        float8.convert(nn.ModuleDict({"mlp": nn.Linear(64, 96, bias=False)}), "rowwise", tp=4)
    with pytest.raises(ValueError, match=r"layer mlp has a bias, which is not in fp8 over parallel.tp=4"):
        float8.convert(nn.ModuleDict({"mlp": nn.Linear(64, 128)}), "rowwise", tp=4)


def emulated(context: Any, case: Case, recipe: str) -> tuple[list[tuple[float, float]], int]:
    """A run whose blocks compute in emulated fp8, and how many layers do."""
    with pytest.MonkeyPatch.context() as patch:
        true = float8.convert
        forced = functools.partial(true, recipe=recipe, emulate=True)
        patch.setattr(parallelize.float8, "convert", lambda blocks, _, tp: forced(blocks, tp=tp))
        layers = count_layers(build(case, context.rank, context.world))
        return curve(context, case), layers


def count_layers(engine: Any) -> int:
    return sum(
        type(module).__name__ == "Float8Linear" for stage in engine._modules for module in stage.modules()
    )


FOLLOWING: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "zero3": (2, {"zero": 3}),
    "tp2": (2, {"tp": 2}),
    "recompute": (2, {"zero": 1, "recompute": "full"}),
}
OFTEN = {("alone", "tensorwise"), ("zero3", "rowwise")}


@pytest.mark.parametrize(
    ("world", "parallel", "recipe"),
    [
        pytest.param(
            *case, recipe, id=f"{name}-{recipe}", marks=[] if (name, recipe) in OFTEN else pytest.mark.slow
        )
        for name, case in FOLLOWING.items()
        for recipe in ("tensorwise", "rowwise")
    ],
)
def test_follows_fp32(ranks: Any, world: int, parallel: dict[str, Any], recipe: str) -> None:
    """The order of composition too: hooks of tp and shards of FSDP work on the converted layers."""
    pytest.importorskip("torchao")
    case = Case(parallel=parallel, model=SIZES, precision="bf16", micro_batch=2, steps=10)
    results = ranks(world).run(emulated, case, recipe) if world > 1 else [emulated(Alone(), case, recipe)]
    for found, layers in results:
        assert layers == 4 * 7
        losses = [abs(f - e) / e for (f, _), (e, _) in zip(found, reference(case), strict=True)]
        assert 3e-4 < max(losses) < BOUND
