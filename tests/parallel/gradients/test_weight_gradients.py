"""Weight gradients that are put off: the same in the end, made from one backward and one recomputation."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from parallel.gradients.fsdp_groups import groups_of, groups_of_state
from parallel.gradients.weight_gradients import Product, defer_weight_gradients
from parallel.transforms.recompute import apply_recompute
from runs import Case, build, micro_batches
from trainer.models.decoder.block import Block


class Stack(nn.Module):
    def __init__(self, recompute: str, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = {
            str(n): nn.Sequential(nn.Linear(6, 20, bias=bias), nn.GELU(), nn.Linear(20, 6, bias=bias))
            for n in range(3)
        }
        self.blocks = nn.ModuleDict(made)
        apply_recompute(self.blocks, recompute)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            x = x + block(x)
        return x


def gradients(stack: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in stack.parameters()]


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_deferred_comes_to_the_same(recompute: str, bias: bool) -> None:
    whole, split = Stack(recompute, bias), Stack(recompute, bias)
    deferred = []
    store = defer_weight_gradients(split)
    for number in range(2):  # two micro-batches, whose weights' gradients come in the other order
        torch.manual_seed(number)
        x = torch.randn(4, 5, 6)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        whole(theirs).square().sum().backward()
        with store.collected() as works:
            split(ours).square().sum().backward()
        assert ours.grad is not None and torch.allclose(ours.grad, theirs.grad, rtol=1e-6)
        deferred.append(works)
    assert all(
        (parameter.grad is None) == name.endswith("weight") for name, parameter in split.named_parameters()
    )
    for works in reversed(deferred):
        assert len(works) == 6
        for work in works:
            work.run()
    for ours, theirs in zip(gradients(split), gradients(whole)):
        assert ours is not None and theirs is not None and torch.allclose(ours, theirs, rtol=1e-5)


def test_outside_a_split_backward_nothing_is_deferred() -> None:
    stack = Stack("none", bias=False)
    defer_weight_gradients(stack)
    stack(torch.randn(2, 6)).sum().backward()
    assert all(gradient is not None for gradient in gradients(stack))


def test_a_frozen_weight_gets_no_gradient() -> None:
    stack = Stack("none", bias=False)
    frozen = next(stack.parameters()).requires_grad_(False)
    with defer_weight_gradients(stack).collected() as works:
        stack(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert len(works) == 5 and frozen.grad is None


def forwards(context: Any, case: Case) -> int:
    """How often a block of this rank runs forward in one step."""
    with pytest.MonkeyPatch.context() as patch:
        seen = 0
        own = Block.forward

        def counted(self: Block, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            return own(self, *args, **kwargs)

        patch.setattr(Block, "forward", counted)
        engine = build(case, context.rank, context.world)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
        return seen


@pytest.mark.parametrize("schedule", ["interleaved_zero_bubble", "zbv_zero_bubble", "dualpipe_v"])
def test_a_block_is_recomputed_once_a_micro_batch(ranks: Any, schedule: str) -> None:
    """torch's own stages recompute it for the inputs, and again for each group of weights."""
    parallel = {"pp": 2, "schedule": schedule, "recompute": "full"}
    case = Case(parallel=parallel, model={"layers": 4}, global_batch=4)
    blocks, micro = 2, 4
    assert ranks(2).run(forwards, case) == [2 * blocks * micro] * 2


def whole_gradients(context: Any, schedule: str, zero: int) -> tuple[int, int]:
    """(most bytes of gradients that are not sharded, at any deferred product; those of one block in fp32)."""
    parallel = {"pp": 2, "dp_shard": 2, "schedule": schedule, "zero": zero}
    case = Case(parallel=parallel, model={"layers": 16}, global_batch=8)
    engine: Any = build(case, context.rank, context.world)
    groups = [group for stage in engine._modules for group in groups_of(stage)]
    most = 0
    with pytest.MonkeyPatch.context() as patch:
        own = Product.run

        def counted(self: Product) -> None:
            nonlocal most
            own(self)
            held = [grad for group in groups for grad in group.accumulated]
            held += [parameter.grad for group in groups for parameter in group.gathered]
            most = max(most, sum(grad.nbytes for grad in held if grad is not None))

        patch.setattr(Product, "run", counted)
        engine.step(micro_batches(case, 0, engine.data_rank, engine.data_ranks), lr=1e-3)
    block = next(iter(engine._modules[0].get_submodule("layers").children()))
    return most, sum(4 * parameter.numel() for parameter in block.parameters())


@pytest.mark.parametrize(("schedule", "zero"), [("interleaved_zero_bubble", 2), ("zbv_zero_bubble", 3)])
def test_no_rank_holds_a_stages_whole_gradients(ranks: Any, schedule: str, zero: int) -> None:
    """Four blocks a stage; gradients not deferred (norms, embedding, head) wait beside one block's."""
    for most, block in ranks(4).run(whole_gradients, schedule, zero):
        ends = 2 * 4 * 128 * 32
        assert 0 < most <= 1.5 * block + ends


def norm_of_bf16_sum(context: Any, count: int) -> float:
    case = Case(
        parallel={"pp": 2, "schedule": "zbv_zero_bubble"}, model={"layers": 4}, precision="bf16",
        global_batch=count, steps=1,
    )  # fmt: skip
    engine = build(case, context.rank, context.world)
    return engine.step(micro_batches(case, 0, 0, 1), lr=0.0).grad_norm


def test_micro_batches_are_added_up_in_float32(ranks: Any) -> None:
    """128 of them: added up in bf16, the sum would stop growing near the 256th part of itself."""
    from runs import Alone, curve

    exact = curve(Alone(), Case(model={"layers": 4}, precision="fp32", global_batch=128, steps=1))[0][1]
    found = ranks(2).run(norm_of_bf16_sum, 128)[0]
    assert abs(found / exact - 1) < 4e-3


def test_groups_of_a_state_are_found_under_either_name() -> None:
    """torch 2.11 has one group a state, later releases a list."""
    assert groups_of_state(SimpleNamespace(_fsdp_param_groups=[1, 2])) == [1, 2]
    assert groups_of_state(SimpleNamespace(_fsdp_param_group=3)) == [3]
    assert groups_of_state(SimpleNamespace(_fsdp_param_group=None)) == []
