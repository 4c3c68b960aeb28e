"""The language-model head: logits, or their cross-entropy without ever holding all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.objective import IGNORED
from trainer.models.layers.softmax import FusedSoftmax, Softmax, VocabShard

VOCAB_BLOCK = 8192
"""Rows of the weight's gradient that exist twice while products of a coarser type are added up."""


class LMHead(nn.Module):
    """weight [vocab, hidden]; hidden states → logits, or with targets → negative log-likelihood by sequence.

    `shard` is None where the weight is whole. `parallel` sets it when it splits the rows; what the results
    then mean is said at `chunked_nll_sum`. Without targets, a split head returns its own columns. `compiler`,
    set by `parallel` as well, is the torch.compile backend that fuses the passes over a chunk of logits.
    """

    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, hidden))
        if not self.weight.is_meta:  # as in layers.Linear
            nn.init.normal_(self.weight, std=hidden**-0.5)
        self.shard: VocabShard | None = None
        self.compiler: str | None = None
        self._gradients: GradientSum | None = None

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """hidden [batch, seq, hidden] → [batch, seq, vocab]; with targets [batch, seq] → [batch], nats."""
        # A sharded parameter may be a DTensor; the rows that lie here are what this rank computes with.
        weight = self.weight.to_local() if hasattr(self.weight, "to_local") else self.weight
        if targets is None:
            return F.linear(hidden, weight)
        return chunked_nll_sum(
            hidden.flatten(0, 1),
            weight,
            targets.flatten(),
            sequences=len(targets),
            shard=self.shard,
            compiler=self.compiler,
            gradients=self._gradients,
        )

    @contextmanager
    def one_gradient(self, *, zeros: bool = False) -> Iterator[None]:
        """Let all forwards in here share one buffer for the weight's gradient; see `GradientSum`.

        For schedules that run many forwards before the first backward. All their backwards are run in here.
        """
        self._gradients = GradientSum(zeros=zeros)
        try:
            yield
            assert self._gradients.waiting == 0, "a forward is left without its backward"
        finally:
            self._gradients = None


class GradientSum:
    """One buffer for the gradients of a weight that forwards have found, until their backwards ask for them.

    The last backward that a forward still waits for is given the sum, and the others None, or with `zeros` a
    gradient of zeros. All backwards must bring the same factor; else the sum is NaN, which no step takes.
    """

    def __init__(self, *, zeros: bool = False) -> None:
        self.waiting = 0
        self._zeros = zeros
        self._sum: Tensor | None = None
        self._factor: Tensor | None = None

    def buffer(self, weight: Tensor) -> Tensor:
        """[vocab, hidden], at least float32: what one more forward adds its gradient to."""
        self.waiting += 1
        if self._sum is None:
            self._sum = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        return self._sum

    def take(self, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What the next backward is given; factor [1] is its loss's gradient."""
        assert self._sum is not None, "the head's backward runs once"
        known, self._factor = self._factor, factor
        if known is not None:
            self._factor = torch.where(known == factor, factor, torch.nan)
        self.waiting -= 1
        if self.waiting:
            return torch.zeros_like(self._sum, dtype=dtype) if self._zeros else None
        # Given away and scaled in place: vocab × hidden is too large to hold twice.
        gradient = self._sum.mul_(self._factor).to(dtype)
        self._sum = self._factor = None
        return gradient


def chunked_nll_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    sequences: int = 1,
    chunk: int = 0,
    shard: VocabShard | None = None,
    compiler: str | None = None,
    gradients: GradientSum | None = None,
) -> Tensor:
    """Σ over counted rows of -log softmax(hidden weightᵀ)[target], in nats: shape [sequences], float32.

    The rows are those of so many sequences of one length, one after another, and each has its sum.
    hidden [rows, hidden], weight [vocab, hidden], targets [rows] int64 with IGNORED for rows not counted.
    `chunk` rows of logits exist at a time (0: chosen by size). The softmax is computed in float32 (float64
    for float64 arguments). Gradients are those of the sequences' total: backward has to bring one factor for
    all of them, else they are NaN. So they are known up to that factor when the forward has seen a chunk, and
    computed there, three matrix products in all, as without chunks. The
    weight's gradient is accumulated in float32. Backward may run once. Nothing of this is done without grad.

    With `shard` = (group, first), `weight` holds rows first … first + len(weight) of the vocabulary, and
    every rank of the group passes the same `hidden` and `targets`. Every rank then returns the same, whole
    sum; the gradient of `weight` is this rank's rows of the whole gradient; the gradient of `hidden` is a
    *partial* one, whose sum over the group is the whole gradient. That holds where every rank runs backward
    with the same factor. One small all-gather a chunk, and no message in backward.

    With `compiler`, two fused kernels read a chunk's logits as they left the matrix product, and no float32
    copy of them exists; else eager operators pass over such a copy. `gradients` is where the weight's
    gradient is added to those of other forwards; without it, it stays alone.
    """
    chunk = chunk or _rows_at_a_time(weight, hidden.shape[0], fused=compiler is not None)
    grad = torch.is_grad_enabled()
    weight_grad = None
    if grad and weight.requires_grad:
        gradients = gradients or GradientSum()
        weight_grad = gradients.buffer(weight)
    with torch.no_grad():
        wants_hidden = grad and hidden.requires_grad
        losses, hidden_grad = _forward(
            hidden, weight, targets, chunk, shard, compiler, wants_hidden, weight_grad
        )
        total = losses.view(sequences, -1).sum(dim=1)
    # Two nodes, not one with two inputs: either may be asked for alone.
    if hidden_grad is not None:
        total = _HiddenGradient.apply(hidden, total, hidden_grad)
    if weight_grad is not None:
        total = total + _WeightGradient.apply(weight, torch.zeros_like(total), gradients)
    return total


class _HiddenGradient(torch.autograd.Function):
    """`value`, as a function of `hidden` whose gradient is known to be `gradient`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the head's backward runs once"
        return gradient.mul_(_one_factor(factor)), None, None


class _WeightGradient(torch.autograd.Function):
    """`value`, as a function of `weight` whose gradient `gradients` has."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, gradients: GradientSum) -> Tensor:
        ctx.gradients, ctx.dtype = gradients, weight.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, None, None]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the head's backward runs once"
        return gradients.take(_one_factor(factor), ctx.dtype), None, None


def _one_factor(factors: Tensor) -> Tensor:
    """[1]: the factor that all sequences have; NaN where they differ."""
    return torch.where((factors == factors[0]).all(), factors[:1], torch.nan)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    shard: VocabShard | None,
    compiler: str | None,
    wants_hidden: bool,
    weight_grad: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The losses [rows], and the gradient of `hidden` where it is wanted. That of `weight` is added to
    `weight_grad`, where there is one.
    """
    vocab, rows = weight.shape[0], hidden.shape[0]
    exact = torch.promote_types(hidden.dtype, torch.float32)
    losses = torch.empty(rows, dtype=exact, device=hidden.device)
    hidden_grad = torch.empty_like(hidden) if wants_hidden else None
    # Fresh pages for every chunk would cost more than the products: all chunks work in the same two.
    products = hidden.new_empty(min(chunk, rows), vocab)
    same = exact == products.dtype or compiler is not None
    logits = products if same else products.new_empty(products.shape, dtype=exact)
    local_targets = targets if shard is None else targets - shard[1]
    counted = targets != IGNORED
    here = counted & (local_targets >= 0) & (local_targets < vocab)
    columns = local_targets.clamp(0, vocab - 1)[:, None]
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        product = products[: len(hidden[part])]
        torch.mm(hidden[part], weight.T, out=product)
        exact_product = product if logits is products else logits[: len(product)].copy_(product)
        softmax: Softmax | FusedSoftmax
        if compiler is None:
            softmax = Softmax.of(exact_product, columns[part], here[part], shard)
        else:
            softmax = FusedSoftmax.of(product, columns[part], here[part], shard, compiler)
        losses[part] = softmax.nll() * counted[part]
        if hidden_grad is None and weight_grad is None:
            continue
        gradient = softmax.nll_gradient(columns[part], here[part], counted[part])
        if gradient.dtype != weight.dtype:
            gradient = product.copy_(gradient)
        if hidden_grad is not None:
            torch.mm(gradient, weight, out=hidden_grad[part])
        if weight_grad is not None:
            _accumulate(weight_grad, gradient, hidden[part])
    return losses, hidden_grad


def _accumulate(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total [vocab, hidden] += gradientᵀ hidden, where `total` may be of a finer type than the products."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for rows, columns in zip(total.split(VOCAB_BLOCK), gradient.split(VOCAB_BLOCK, dim=1)):
        rows += _exact_product(columns.T, hidden) if gradient.dtype == torch.float16 else columns.T @ hidden


def _exact_product(left: Tensor, right: Tensor) -> Tensor:
    """left right in float32, of two float16 matrices.

    In float16 a sum over many rows overflows before the loss scale, which comes in backward, has its say.
    """
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # no CPU kernel gives a product of another type than its factors'


def _rows_at_a_time(weight: Tensor, rows: int, *, fused: bool) -> int:
    """Rows whose logits stay in a CPU's cache, or keep a GPU busy. Chunks are of one size, as far as can be:
    fused kernels are compiled for each.

    Half-precision products are added up outside the matrix product, which more rows at a time repay. On a CPU
    the weight's gradient leaves the cache once a chunk, and few rows do not repay that: a chunk of logits may
    be a quarter of its size, and the whole stays far below the full logits' peak.
    """
    element_bytes = weight.element_size() if fused else 4
    vocab, hidden = weight.shape
    if weight.is_cuda:
        most = (512 << 20) // (element_bytes * vocab)
    else:
        budget_bytes = 16 << 20 if weight.element_size() >= 4 else 32 << 20
        most = max(budget_bytes // (element_bytes * vocab), hidden // 4)
    most = max(64, most // 64 * 64)
    chunks = max(1, -(-rows // most))
    return -(-rows // (64 * chunks)) * 64
