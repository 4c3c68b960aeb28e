"""The softmax of a chunk of logits, eager or in fused kernels: the loss of its rows, and their gradient.

Arguments that several functions share:

columns: [rows, 1], each row's target among the columns of this rank; any valid column where `here` is False.
here: [rows], whether the target is counted and on this rank.
counted: [rows], whether the target is counted.
smoothing: what is added to the negative log-likelihood; None: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.module_interfaces import TokenLoss, VocabShard


@dataclass(frozen=True)
class Smoothing:
    """`common.module_interfaces.TokenLoss` as coefficients of the loss of logits z [vocab] with the target t:

        log Z - kept · z_t - spread · Σ z + z_loss · (log Z)²

    so the gradient by z is softmax(z) · (1 + 2 · z_loss · log Z) - kept · onehot(t) - spread.
    """

    kept: float
    spread: float
    z_loss: float

    @classmethod
    def of(cls, options: TokenLoss, vocab: int) -> Smoothing | None:
        """Return the coefficients; None where nothing is added. vocab: logits over all shards."""
        if not options.z_loss and not options.label_smoothing:
            return None
        spread = options.label_smoothing
        return cls(kept=1.0 - spread, spread=spread / vocab, z_loss=options.z_loss)


@dataclass(frozen=True)
class Numbers:
    """What a row's loss follows from, of the whole vocabulary, each [rows].

    peak: the largest logit.
    mass: Σ exp(logit - peak).
    at_target: the target's logit; 0 where the target is not counted.
    total: Σ logit; None where it is not needed.
    smoothing: see above.
    """

    peak: Tensor
    mass: Tensor
    at_target: Tensor
    total: Tensor | None
    smoothing: Smoothing | None

    def loss(self) -> Tensor:
        """Return each row's loss, [rows], in nats."""
        log_mass = self.mass.log() + self.peak
        if self.smoothing is None:
            return log_mass - self.at_target
        loss = log_mass - self.smoothing.kept * self.at_target
        if self.total is not None:
            loss -= self.smoothing.spread * self.total
        return loss.add_(log_mass.square_(), alpha=self.smoothing.z_loss)

    def slope(self) -> Tensor:
        """Return the factor of the softmax in the gradient, [rows]; not where `smoothing` is None."""
        assert self.smoothing is not None
        return (self.mass.log() + self.peak).mul_(2 * self.smoothing.z_loss).add_(1)


@dataclass(frozen=True)
class Softmax:
    """The softmax of a chunk's logits: exponentials of this rank's columns, and the rows' numbers.

    exponentials: [rows, this rank's vocabulary], exp(logit - own_peak).
    own_peak: [rows], the largest logit of this rank's columns.
    """

    exponentials: Tensor
    own_peak: Tensor
    numbers: Numbers

    @classmethod
    def of(
        cls,
        logits: Tensor,
        columns: Tensor,
        here: Tensor,
        shard: VocabShard | None,
        smoothing: Smoothing | None = None,
    ) -> Softmax:
        """Compute the softmax in place: the memory of `logits` [rows, vocab] is used for the exponentials."""
        peak = logits.amax(dim=1)
        at_target = logits.gather(1, columns)[:, 0].masked_fill(~here, 0.0)
        total = logits.sum(dim=1) if smoothing is not None and smoothing.spread else None
        exponentials = logits.sub_(peak[:, None]).exp_()
        mass = exponentials.sum(dim=1)
        return cls(exponentials, peak, _numbers_of(peak, mass, at_target, total, shard, smoothing))

    def loss(self) -> Tensor:
        """Return each row's loss, [rows], in nats."""
        return self.numbers.loss()

    def loss_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """Return the loss's gradient by the logits, zero in rows that are not counted, in the memory of the
        exponentials, so call it only once.
        """
        peak, mass, smoothing = self.numbers.peak, self.numbers.mass, self.numbers.smoothing
        scale = (self.own_peak - peak).exp_().div_(mass).mul_(counted)
        if smoothing is None:
            gradient = self.exponentials.mul_(scale[:, None])
            return gradient.scatter_add_(1, columns, here[:, None].to(gradient.dtype).neg_())
        gradient = self.exponentials.mul_(scale.mul_(self.numbers.slope())[:, None])
        if smoothing.spread:
            gradient.sub_(counted[:, None].to(gradient.dtype).mul_(smoothing.spread))
        return gradient.scatter_add_(1, columns, here[:, None].to(gradient.dtype).mul_(-smoothing.kept))


@dataclass(frozen=True)
class FusedSoftmax:
    """The same by two compiled kernels: one reads the logits for the numbers of each row, one writes the
    gradient.

    logits: [rows, this rank's vocabulary], in the dtype of the matrix product, unchanged until the gradient.
    numbers: of the rows.
    compiler: the torch.compile backend.
    """

    logits: Tensor
    numbers: Numbers
    compiler: str

    @classmethod
    def of(
        cls,
        logits: Tensor,
        columns: Tensor,
        here: Tensor,
        shard: VocabShard | None,
        compiler: str,
        smoothing: Smoothing | None = None,
    ) -> FusedSoftmax:
        if smoothing is not None and smoothing.spread:
            peak, mass, at_target, total = _compiled(_numbers_and_total, compiler)(logits, columns, here)
        else:
            (peak, mass, at_target), total = _compiled(_numbers, compiler)(logits, columns, here), None
        return cls(logits, _numbers_of(peak, mass, at_target, total, shard, smoothing), compiler)

    def loss(self) -> Tensor:
        """Return each row's loss, [rows], in nats."""
        return self.numbers.loss()

    def loss_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """Return the loss's gradient by the logits, zero in rows that are not counted, in their memory."""
        numbers, smoothing = self.numbers, self.numbers.smoothing
        rows = (self.logits, numbers.peak, numbers.mass)
        if smoothing is None:
            return _compiled(_into_gradient, self.compiler)(*rows, columns, here, counted)
        kernel = _compiled(_into_smooth_gradient, self.compiler)
        return kernel(*rows, numbers.slope(), columns, here, counted, smoothing.kept, smoothing.spread)


def _numbers(logits: Tensor, columns: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    peak = exact.amax(dim=1)
    mass = (exact - peak[:, None]).exp().sum(dim=1)
    return peak, mass, exact.gather(1, columns)[:, 0].masked_fill(~here, 0.0)


def _numbers_and_total(
    logits: Tensor, columns: Tensor, here: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return *_numbers(logits, columns, here), exact.sum(dim=1)


def _into_gradient(
    logits: Tensor, peak: Tensor, mass: Tensor, columns: Tensor, here: Tensor, counted: Tensor
) -> Tensor:
    softmax = (logits.to(peak.dtype) - peak[:, None]).exp() / mass[:, None]
    target = torch.arange(logits.shape[1], device=logits.device)[None] == columns
    return logits.copy_((softmax - (target & here[:, None]).to(peak.dtype)) * counted[:, None])


def _into_smooth_gradient(
    logits: Tensor,
    peak: Tensor,
    mass: Tensor,
    slope: Tensor,
    columns: Tensor,
    here: Tensor,
    counted: Tensor,
    kept: float,
    spread: float,
) -> Tensor:
    softmax = (logits.to(peak.dtype) - peak[:, None]).exp() * (slope / mass)[:, None]
    target = torch.arange(logits.shape[1], device=logits.device)[None] == columns
    wanted = (target & here[:, None]).to(peak.dtype) * kept + spread
    return logits.copy_((softmax - wanted) * counted[:, None])


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, dynamic=False)


def _numbers_of(
    peak: Tensor,
    mass: Tensor,
    at_target: Tensor,
    total: Tensor | None,
    shard: VocabShard | None,
    smoothing: Smoothing | None,
) -> Numbers:
    """Combine the numbers of each rank's columns into those of the whole vocabulary, equal on all ranks."""
    if shard is None:
        return Numbers(peak, mass, at_target, total, smoothing)
    mine = torch.stack((peak, mass, at_target) if total is None else (peak, mass, at_target, total))
    parts = mine.new_empty(shard.group.size(), *mine.shape)
    dist.all_gather(list(parts.unbind()), mine, group=shard.group)
    peaks, masses, *sums = parts.unbind(dim=1)
    whole_peak = peaks.amax(dim=0)
    whole_mass = (masses * (peaks - whole_peak).exp_()).sum(dim=0)
    whole = [part.sum(dim=0) for part in sums]
    return Numbers(whole_peak, whole_mass, whole[0], whole[1] if total is not None else None, smoothing)
