"""A bias of the logits: loss and gradients, whole and over a split vocabulary."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from common.module_interfaces import VocabShard
from common.objective import IGNORED
from ranks import RankContext, RankPools
from trainer.models.layers.head import LMHead


def case(rows: int, vocab: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, 24, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocab, 24, generator=draw, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=draw)
    targets[torch.rand(rows, generator=draw) < 0.3] = IGNORED
    return states, weight, targets


def with_bias(
    context: RankContext, cuts: list[int], compiler: str | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Loss and gradients of a head with a bias, of which each rank has some rows."""
    states, weight, targets = case(37, cuts[-1], dtype=dtype)
    bias = torch.randn(cuts[-1], generator=torch.Generator().manual_seed(5)).to(dtype)
    first, last = cuts[context.rank], cuts[context.rank + 1]
    module = LMHead(24, last - first, bias=True).to(dtype)
    module.weight.data, module.bias.data = weight[first:last], bias[first:last]
    if compiler:
        module.set_compiler(compiler)
    if context.world > 1:
        assert dist.group.WORLD is not None
        module.set_vocab_shard(VocabShard(dist.group.WORLD, first))
    losses = module(states.requires_grad_()[None], targets[None])
    (0.37 * losses).sum().backward()
    assert states.grad is not None
    return losses.detach()[0], states.grad, module.weight.grad, module.bias.grad


def plain_with_bias(vocab: int) -> tuple[Tensor, ...]:
    states, weight, targets = case(37, vocab)
    bias = torch.randn(vocab, generator=torch.Generator().manual_seed(5)).double()
    leaves = [one.requires_grad_() for one in (states, weight, bias)]
    loss = F.cross_entropy(F.linear(*leaves), targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(0.37 * loss, leaves)


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_a_bias_of_the_logits_has_its_loss_and_gradients(compiler: str | None) -> None:
    found = with_bias(RankContext(0, 1), [0, 101], compiler, torch.float64)
    for mine, theirs in zip(found, plain_with_bias(101)):
        assert (mine - theirs).abs().max() <= 1e-10
    assert found[3].any()
    coarse = with_bias(RankContext(0, 1), [0, 101], compiler, torch.bfloat16)
    assert coarse[3].dtype == torch.bfloat16
    assert (coarse[3].double() - found[3]).norm() <= 0.02 * found[3].norm()
    module = LMHead(8, 12, bias=True)
    module.bias.data.normal_()
    hidden = torch.randn(2, 3, 8)
    assert torch.allclose(module(hidden), hidden @ module.weight.T + module.bias, atol=1e-6)


def test_a_split_vocabulary_splits_the_bias(ranks: RankPools) -> None:
    loss, states_grad, weight_grad, bias_grad = plain_with_bias(100)
    found = ranks(2).run(with_bias, [0, 30, 100], None, torch.float64)
    assert all((one[0] - loss).abs() <= 1e-10 for one in found)
    assert (found[0][1] + found[1][1] - states_grad).abs().max() <= 1e-10
    assert (torch.cat([one[2] for one in found]) - weight_grad).abs().max() <= 1e-10
    assert (torch.cat([one[3] for one in found]) - bias_grad).abs().max() <= 1e-10


def test_biases_of_forwards_that_wait_share_one_buffer() -> None:
    module = LMHead(24, 101, bias=True).double()
    batches = [case(9, 101, seed=seed) for seed in range(3)]
    separate = []
    for states, _, targets in batches:
        separate.append(torch.autograd.grad(module(states[None], targets[None]).sum(), module.bias)[0])
    with module.one_gradient_buffer(zeros=False):
        losses = [module(states[None], targets[None]) for states, _, targets in batches]
        for loss in losses:
            assert module.bias.grad is None
            loss.sum().backward()
    assert module.bias.grad is not None
    assert (module.bias.grad - sum(separate)).abs().max() <= 1e-10
