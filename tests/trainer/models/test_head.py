"""The chunked cross-entropy is the plain one: value and both gradients, whole and over a split vocabulary."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.module_interfaces import BuffersGradient, FusesKernels, HasTokenLoss, VocabParallel, VocabShard
from common.objective import IGNORED
from ranks import RankContext, RankPools
from trainer.models.layers import cross_entropy
from trainer.models.layers.cross_entropy import chunked_nll_sum
from trainer.models.layers.head import LMHead

Case = tuple[Tensor, Tensor, Tensor]
Result = tuple[Tensor, Tensor, Tensor]


def case(rows: int, vocab: int, hidden: int = 24, dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, hidden, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.3] = IGNORED
    return states, weight, targets


def plain(states: Tensor, weight: Tensor, targets: Tensor, factor: float = 0.37) -> Result:
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(states, weight), targets, reduction="sum")
    (factor * loss).backward()
    assert states.grad is not None and weight.grad is not None
    return loss.detach(), states.grad, weight.grad


def chunked(states: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0, factor: float = 0.37) -> Result:
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = chunked_nll_sum(states, weight, targets, chunk=chunk)
    (factor * loss).sum().backward()
    assert states.grad is not None and weight.grad is not None
    return loss.detach()[0], states.grad, weight.grad


@pytest.mark.parametrize("chunk", [0, 1, 7, 16, 64])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 2), (37, 101), (64, 50)])
def test_equals_the_plain_one_in_float64(rows: int, vocab: int, chunk: int) -> None:
    given = case(rows, vocab)
    for ours, reference in zip(chunked(*given, chunk=chunk), plain(*given)):
        assert (ours - reference).abs().max() <= 1e-10


def test_a_chunk_or_a_batch_without_targets_counts_nothing() -> None:
    states, weight, targets = case(32, 40)
    targets[8:16] = IGNORED
    for ours, reference in zip(chunked(states, weight, targets, chunk=8), plain(states, weight, targets)):
        assert (ours - reference).abs().max() <= 1e-10
    loss, states_grad, weight_grad = chunked(states, weight, torch.full_like(targets, IGNORED))
    assert loss == 0 and not states_grad.any() and not weight_grad.any()


def test_large_logits_do_not_overflow() -> None:
    states, weight, targets = case(16, 40, dtype=torch.float32)
    for ours, reference in zip(chunked(100 * states, weight, targets), plain(100 * states, weight, targets)):
        assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_types_are_as_close_to_float64_as_the_plain_one(dtype: torch.dtype) -> None:
    given = case(257, 301, dtype=dtype)
    states, weight, targets = given
    exact = plain(states.double(), weight.double(), targets)
    for ours, reference, truth in zip(chunked(*given, chunk=32), plain(*given), exact):
        distance = (ours.double() - truth).norm()
        assert distance <= 1.1 * (reference.double() - truth).norm() + 1e-6 * truth.norm()


def test_float16_gradients_are_finite_where_the_scaled_ones_can_be_written_down() -> None:
    """32,768 rows with one target and a feature of mean 3.6 add up to 117,000 before the loss scale comes.
    Weights of 30,000 give an input gradient as large.
    """
    draw = torch.Generator().manual_seed(0)
    rows, vocab = 32768, 256
    states = torch.randn(rows, 8, generator=draw)
    states[:, 0] += 3.6
    weight = 0.02 * torch.randn(vocab, 8, generator=draw)
    weight[:, 1] = 30000.0
    states[:, 1] = 0.0
    given = states.half(), weight.half(), torch.zeros(rows, dtype=torch.long)
    exact = plain(*(one.double() for one in given[:2]), given[2], factor=1 / rows)
    found = [one.requires_grad_() for one in given[:2]]
    loss = chunked_nll_sum(*found, given[2])
    (loss / rows).sum().backward()
    for one, truth, unit in zip(found, exact[1:], (30000.0 / rows, 3.6)):
        assert one.grad is not None
        # An entry of softmax is rounded to float16, and so is the result.
        assert (one.grad.double() - truth).abs().max() <= 2 * 2**-11 * unit


def test_the_sum_is_float32_and_gradients_have_the_type_of_what_they_are_of() -> None:
    loss, states_grad, weight_grad = chunked(*case(9, 11, dtype=torch.bfloat16))
    assert (loss.dtype, states_grad.dtype, weight_grad.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight, targets = case(8, 10)
    wanted: list[tuple[bool, bool]] = []
    forward = cross_entropy._losses_and_gradients
    monkeypatch.setattr(
        cross_entropy,
        "_losses_and_gradients",
        lambda *a: (wanted.append((a[-3], a[-2] is not None)), forward(*a))[1],
    )
    with torch.no_grad():
        chunked_nll_sum(states.requires_grad_(), weight.requires_grad_(), targets)
    chunked_nll_sum(states, weight.detach(), targets).backward()
    chunked_nll_sum(states.detach(), weight, targets).backward()
    assert wanted == [(False, False), (True, False), (False, True)]


def test_a_factor_that_was_wrong_would_be_seen() -> None:
    given = case(16, 20)
    assert not torch.allclose(chunked(*given, factor=0.37 * 1.01)[1], plain(*given)[1], rtol=1e-3)


def test_backward_can_be_run_for_the_input_first_and_the_weight_later() -> None:
    """Each is given away once, and neither takes the other's."""
    states, weight, targets = case(16, 20)
    _, states_grad, weight_grad = plain(states, weight, targets, factor=1.0)
    states.requires_grad_(), weight.requires_grad_()
    loss = chunked_nll_sum(states, weight, targets)
    (first,) = torch.autograd.grad(loss, states, torch.ones(1, dtype=torch.float64), retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight, torch.ones(1, dtype=torch.float64))
    assert torch.allclose(first, states_grad, atol=1e-10) and torch.allclose(second, weight_grad, atol=1e-10)


def test_forwards_that_wait_share_one_buffer_and_the_last_backward_gives_it_away() -> None:
    module = LMHead(24, 101).double()
    batches = [case(9, 101, seed=seed) for seed in range(3)]
    expected = sum(plain(states, module.weight.detach(), targets)[2] for states, _, targets in batches)
    with module.one_gradient_buffer(zeros=False):
        losses = [module(states[None], targets[None]) for states, _, targets in batches]
        buffers = {loss.grad_fn.next_functions[1][0].gradients for loss in losses}
        assert len(buffers) == 1
        for loss in losses:
            assert module.weight.grad is None
            (0.37 * loss).sum().backward()
    assert (module.weight.grad - expected).abs().max() <= 1e-10


def test_factors_that_differ_make_no_gradient() -> None:
    module = LMHead(24, 101)
    with module.one_gradient_buffer(zeros=False):
        losses = [module(torch.randn(1, 5, 24), torch.zeros(1, 5, dtype=torch.long)) for _ in range(2)]
        losses[0].sum().backward()
        (2 * losses[1]).sum().backward()
    assert module.weight.grad is not None and module.weight.grad.isnan().all()


def test_a_forward_without_its_backward_is_noticed() -> None:
    module = LMHead(24, 101)
    with pytest.raises(AssertionError, match="without its backward"), module.one_gradient_buffer(zeros=False):
        module(torch.randn(1, 5, 24), torch.zeros(1, 5, dtype=torch.long))


class LargestOutput(TorchDispatchMode):
    """The most elements that any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_comes_near_the_full_logits() -> None:
    """The benchmark measures bytes; this is what makes them few, at a vocabulary of 32k."""
    given = case(2048, 32768, hidden=8, dtype=torch.float32)
    with LargestOutput() as ours:
        chunked(*given)
    with LargestOutput() as theirs:
        plain(*given)
    assert ours.elements <= theirs.elements / 8 and theirs.elements == 2048 * 32768


def test_the_head_has_the_interfaces_that_parallel_looks_for() -> None:
    """Without one of them the head would be left whole, uncompiled or with a buffer for each micro-batch."""
    for interface in (VocabParallel, HasTokenLoss, FusesKernels, BuffersGradient):
        assert isinstance(LMHead(8, 12), interface)
        assert not isinstance(torch.nn.Linear(8, 12), interface)


def test_the_head_without_targets_gives_logits() -> None:
    module = LMHead(8, 12)
    hidden = torch.randn(2, 3, 8)
    assert torch.equal(module(hidden), hidden @ module.weight.T)
    assert module(hidden, torch.zeros(2, 3, dtype=torch.long)).shape == (2,)


def test_each_sequence_has_its_own_loss_and_gradients_are_of_their_total() -> None:
    states, weight, targets = case(36, 50)
    losses = chunked_nll_sum(states, weight, targets, sequences=4, chunk=10)
    alone = [chunked_nll_sum(s, weight, t) for s, t in zip(states.chunk(4), targets.chunk(4))]
    torch.testing.assert_close(losses, torch.cat(alone))
    found = []
    for sequences in (1, 4):
        s, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
        (3 * chunked_nll_sum(s, w, targets, sequences=sequences).sum()).backward()
        found.append((s.grad, w.grad))
    torch.testing.assert_close(found[0], found[1])
    s = states.clone().requires_grad_()
    (chunked_nll_sum(s, weight, targets, sequences=4) * torch.arange(4.0)).sum().backward()
    assert s.grad is not None and s.grad.isnan().all()  # factors that differ are found, not mistaken


def split_vocabulary(context: RankContext, cuts: list[int], chunk: int, fault: bool) -> list[Result]:
    states, weight, targets = case(37, cuts[-1])
    first, last = cuts[context.rank], cuts[context.rank + 1]
    states = states.requires_grad_()
    mine = weight[first:last].clone().requires_grad_()
    group = dist.group.WORLD
    assert group is not None
    shard = VocabShard(group, first + fault)
    loss = chunked_nll_sum(states, mine, targets, chunk=chunk, shard=shard)
    (0.37 * loss).sum().backward()
    assert states.grad is not None and mine.grad is not None
    with torch.no_grad():
        assert torch.equal(
            chunked_nll_sum(states, mine, targets, shard=VocabShard(group, first + fault)), loss
        )
    return [loss.detach()[0], states.grad, mine.grad]


@pytest.mark.parametrize(("cuts", "chunk"), [([0, 50, 100], 0), ([0, 1, 101], 16)])
def test_a_split_vocabulary_gives_the_whole_loss_and_partial_gradients(
    ranks: RankPools, cuts: list[int], chunk: int
) -> None:
    loss, states_grad, weight_grad = plain(*case(37, cuts[-1]))
    results = ranks(2).run(split_vocabulary, cuts, chunk, False)
    assert torch.equal(results[0][0], results[1][0])
    assert (results[0][0] - loss).abs() <= 1e-10
    assert (results[0][1] + results[1][1] - states_grad).abs().max() <= 1e-10
    assert (torch.cat([results[0][2], results[1][2]]) - weight_grad).abs().max() <= 1e-10


def test_a_shard_at_the_wrong_row_would_be_seen(ranks: RankPools) -> None:
    loss, _, _ = plain(*case(37, 100))
    assert (ranks(2).run(split_vocabulary, [0, 50, 100], 0, True)[0][0] - loss).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_passes_are_the_eager_ones(dtype: torch.dtype) -> None:
    """Rows not counted, targets everywhere, chunks that leave a rest."""
    draw = torch.Generator().manual_seed(3)
    targets = torch.randint(300, (150,), generator=draw)
    targets[::7] = IGNORED
    found = []
    for compiler in (None, "eager", "aot_eager"):
        hidden = torch.randn(150, 24, generator=draw.manual_seed(4)).to(dtype).requires_grad_()
        weight = torch.randn(300, 24, generator=draw).to(dtype).requires_grad_()
        total = chunked_nll_sum(hidden, weight, targets, chunk=64, compiler=compiler)
        found.append((total.detach(), *torch.autograd.grad(total, (hidden, weight))))
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for fused in found[1:]:
        for mine, theirs in zip(fused, found[0]):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)
