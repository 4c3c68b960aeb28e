"""The softmax of a chunk of logits, eager or in fused kernels: the loss of its rows, and their gradient.

Arguments that several functions share:

columns: [rows, 1], each row's target among the columns of this rank; any valid column where `here` is False.
here: [rows], whether the target is counted and on this rank.
counted: [rows], whether the target is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.module_interfaces import VocabShard


@dataclass(frozen=True)
class Softmax:
    """The softmax of a chunk's logits: exponentials of this rank's columns, and four numbers for each row.

    exponentials: [rows, this rank's vocabulary], exp(logit - own_peak).
    own_peak: [rows], the largest logit of this rank's columns.
    peak: [rows], the largest logit of the whole vocabulary.
    mass: [rows], Σ exp(logit - peak) over the whole vocabulary.
    at_target: [rows], the target's logit; 0 where the target is not counted.
    """

    exponentials: Tensor
    own_peak: Tensor
    peak: Tensor
    mass: Tensor
    at_target: Tensor

    @classmethod
    def of(cls, logits: Tensor, columns: Tensor, here: Tensor, shard: VocabShard | None) -> Softmax:
        """Compute the softmax in place: the memory of `logits` [rows, vocab] is used for the exponentials."""
        peak = logits.amax(dim=1)
        at_target = logits.gather(1, columns)[:, 0].masked_fill(~here, 0.0)
        exponentials = logits.sub_(peak[:, None]).exp_()
        mass = exponentials.sum(dim=1)
        if shard is None:
            return cls(exponentials, peak, peak, mass, at_target)
        return cls(exponentials, peak, *_over_shards(peak, mass, at_target, shard.group))

    def nll(self) -> Tensor:
        """Return -log softmax[target], [rows], in nats."""
        return self.mass.log() + self.peak - self.at_target

    def nll_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """Return softmax - onehot(target), zero in rows that are not counted, in the memory of the
        exponentials, so call it only once.
        """
        scale = (self.own_peak - self.peak).exp_().div_(self.mass).mul_(counted)
        gradient = self.exponentials.mul_(scale[:, None])
        return gradient.scatter_add_(1, columns, here[:, None].to(gradient.dtype).neg_())


@dataclass(frozen=True)
class FusedSoftmax:
    """The same by two compiled kernels: one reads the logits for three numbers of each row, one writes
    the gradient.

    logits: [rows, this rank's vocabulary], in the dtype of the matrix product, unchanged until the gradient.
    peak, mass, at_target: as in `Softmax`.
    compiler: the torch.compile backend.
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
            peak, mass, at_target = _over_shards(peak, mass, at_target, shard.group)
        return cls(logits, peak, mass, at_target, compiler)

    def nll(self) -> Tensor:
        """Return -log softmax[target], [rows], in nats."""
        return self.mass.log() + self.peak - self.at_target

    def nll_gradient(self, columns: Tensor, here: Tensor, counted: Tensor) -> Tensor:
        """Return softmax - onehot(target), zero in rows that are not counted, in the memory of the logits."""
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
    """Combine each rank's peak, mass and target logit into those of the whole vocabulary, equal on all
    ranks.
    """
    mine = torch.stack((peak, mass, at_target))
    parts = mine.new_empty(group.size(), *mine.shape)
    dist.all_gather(list(parts.unbind()), mine, group=group)
    peaks, masses, targets = parts.unbind(dim=1)
    whole_peak = peaks.amax(dim=0)
    return whole_peak, (masses * (peaks - whole_peak).exp_()).sum(dim=0), targets.sum(dim=0)
