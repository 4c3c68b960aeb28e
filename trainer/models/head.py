"""The language-model head: logits, or their cross-entropy without ever holding all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
"""A target that is not counted: PyTorch's own `ignore_index`."""

VOCAB_BLOCK = 8192
"""Rows of the weight's gradient that exist twice while products of a coarser type are added up."""

VocabShard = tuple[dist.ProcessGroup, int]
"""Where a split vocabulary lies: the ranks that hold it, and the first row that is here."""


class LMHead(nn.Module):
    """weight [vocab, hidden]; hidden states → logits, or with targets → summed negative log-likelihood.

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

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """hidden [batch, seq, hidden] → [batch, seq, vocab]; with targets [batch, seq] → [1], nats."""
        # A sharded parameter may be a DTensor; the rows that lie here are what this rank computes with.
        weight = self.weight.to_local() if hasattr(self.weight, "to_local") else self.weight
        if targets is None:
            return F.linear(hidden, weight)
        return chunked_nll_sum(
            hidden.flatten(0, 1), weight, targets.flatten(), shard=self.shard, compiler=self.compiler
        )


def chunked_nll_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk: int = 0,
    shard: VocabShard | None = None,
    compiler: str | None = None,
) -> Tensor:
    """Σ over counted rows of -log softmax(hidden weightᵀ)[target], in nats: shape [1], float32.

    hidden [rows, hidden], weight [vocab, hidden], targets [rows] int64 with IGNORED for rows not counted.
    `chunk` rows of logits exist at a time (0: chosen by size). The softmax is computed in float32 (float64
    for float64 arguments). Since the result is one scalar, its gradients are known up to a factor when the
    forward has seen a chunk: they are computed there, three matrix products in all, as without chunks. The
    weight's gradient is accumulated in float32. Backward may run once. Nothing of this is done without grad.

    With `shard` = (group, first), `weight` holds rows first … first + len(weight) of the vocabulary, and
    every rank of the group passes the same `hidden` and `targets`. Every rank then returns the same, whole
    sum; the gradient of `weight` is this rank's rows of the whole gradient; the gradient of `hidden` is a
    *partial* one, whose sum over the group is the whole gradient. That holds where every rank runs backward
    with the same factor. One small all-gather a chunk, and no message in backward.

    With `compiler`, two fused kernels read a chunk's logits as they left the matrix product, and no float32
    copy of them exists; else eager operators pass over such a copy.
    """
    chunk = chunk or _rows_at_a_time(weight, hidden.shape[0], fused=compiler is not None)
    grad = torch.is_grad_enabled()
    wants = grad and hidden.requires_grad, grad and weight.requires_grad
    with torch.no_grad():
        total, hidden_grad, weight_grad = _forward(hidden, weight, targets, chunk, shard, compiler, wants)
    # Two nodes, not one with two inputs: either may be asked for alone, and scales its gradient in place.
    if hidden_grad is not None:
        total = _KnownGradient.apply(hidden, total, hidden_grad)
    if weight_grad is not None:
        total = total + _KnownGradient.apply(weight, torch.zeros_like(total), weight_grad)
    return total


class _KnownGradient(torch.autograd.Function):
    """`value`, as a function of `source` whose gradient is known to be `gradient`."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient, ctx.dtype = gradient, source.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        # Given away and scaled in place: vocab × hidden is too large to hold twice.
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the head's backward runs once"
        return gradient.mul_(factor).to(ctx.dtype), None, None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    shard: VocabShard | None,
    compiler: str | None,
    wants: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss [1], and the gradients that are wanted."""
    vocab, rows = weight.shape[0], hidden.shape[0]
    exact = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros(1, dtype=exact, device=hidden.device)
    hidden_grad = torch.empty_like(hidden) if wants[0] else None
    weight_grad = torch.zeros_like(weight, dtype=exact) if wants[1] else None
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
        total += (softmax.nll() * counted[part]).sum()
        if hidden_grad is None and weight_grad is None:
            continue
        gradient = softmax.nll_gradient(columns[part], here[part], counted[part])
        if gradient.dtype != weight.dtype:
            gradient = product.copy_(gradient)
        if hidden_grad is not None:
            torch.mm(gradient, weight, out=hidden_grad[part])
        if weight_grad is not None:
            _accumulate(weight_grad, gradient, hidden[part])
    return total, hidden_grad, weight_grad


@dataclass(frozen=True)
class Softmax:
    """The softmax of a chunk's logits: the exponentials of the columns that lie here, three numbers a row.

    exponentials [rows, vocab here] are exp(logit - own_peak), own_peak [rows] being the peak of the columns
    here. Of the whole vocabulary, each [rows]: peak; mass = Σ exp(logit - peak); at_target, the target's
    logit.
    """

    exponentials: Tensor
    own_peak: Tensor
    peak: Tensor
    mass: Tensor
    at_target: Tensor

    @classmethod
    def of(cls, logits: Tensor, columns: Tensor, here: Tensor, shard: VocabShard | None) -> Softmax:
        """Takes `logits` over: their memory holds the exponentials."""
        peak = logits.amax(dim=1)
        at_target = logits.gather(1, columns)[:, 0].masked_fill(~here, 0.0)
        exponentials = logits.sub_(peak[:, None]).exp_()
        mass = exponentials.sum(dim=1)
        if shard is None:
            return cls(exponentials, peak, peak, mass, at_target)
        return cls(exponentials, peak, *_over_shards(peak, mass, at_target, shard[0]))

    def nll(self) -> Tensor:
        """-log softmax[target], [rows], in nats."""
        return self.mass.log() + self.peak - self.at_target

    def nll_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """softmax - onehot(target), zero in rows that are not counted. Takes the exponentials over."""
        scale = (self.own_peak - self.peak).exp_().div_(self.mass).mul_(counted)
        gradient = self.exponentials.mul_(scale[:, None])
        return gradient.scatter_add_(1, columns, here[:, None].to(gradient.dtype).neg_())


@dataclass(frozen=True)
class FusedSoftmax:
    """The same of logits in whatever type the matrix product gave them, which are left as they are: the first
    compiled kernel reads them for the three numbers, the second turns them into the gradient.
    """

    logits: Tensor
    peak: Tensor
    mass: Tensor
    at_target: Tensor
    compiler: str

    @classmethod
    def of(
        cls, logits: Tensor, columns: Tensor, here: Tensor, shard: VocabShard | None, compiler: str
    ) -> FusedSoftmax:
        peak, mass, at_target = _compiled(_numbers, compiler)(logits, columns, here)
        if shard is not None:
            peak, mass, at_target = _over_shards(peak, mass, at_target, shard[0])
        return cls(logits, peak, mass, at_target, compiler)

    def nll(self) -> Tensor:
        """-log softmax[target], [rows], in nats."""
        return self.mass.log() + self.peak - self.at_target

    def nll_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """softmax - onehot(target), zero in rows that are not counted. Takes the logits' memory over."""
        kernel = _compiled(_into_gradient, self.compiler)
        return kernel(self.logits, self.peak, self.mass, columns, here, counted)


def _numbers(logits: Tensor, columns: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    peak = exact.amax(dim=1)
    mass = (exact - peak[:, None]).exp().sum(dim=1)
    return peak, mass, exact.gather(1, columns)[:, 0].masked_fill(~here, 0.0)


def _into_gradient(
    logits: Tensor, peak: Tensor, mass: Tensor, columns: Tensor, here: Tensor, counted: Tensor
) -> Tensor:
    softmax = (logits.to(peak.dtype) - peak[:, None]).exp() / mass[:, None]
    target = torch.arange(logits.shape[1], device=logits.device)[None] == columns
    return logits.copy_((softmax - (target & here[:, None]).to(peak.dtype)) * counted[:, None])


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, dynamic=False)


def _over_shards(
    peak: Tensor, mass: Tensor, at_target: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Peak, mass above it and target logit of the whole vocabulary; the same on all ranks."""
    mine = torch.stack((peak, mass, at_target))
    parts = mine.new_empty(group.size(), *mine.shape)
    dist.all_gather(list(parts.unbind()), mine, group=group)
    peaks, masses, targets = parts.unbind(dim=1)
    whole_peak = peaks.amax(dim=0)
    return whole_peak, (masses * (peaks - whole_peak).exp_()).sum(dim=0), targets.sum(dim=0)


def _accumulate(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total [vocab, hidden] += gradientᵀ hidden, where `total` may be of a finer type than the products."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden)
        return
    for rows, columns in zip(total.split(VOCAB_BLOCK), gradient.split(VOCAB_BLOCK, dim=1)):
        rows += columns.T @ hidden


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
