"""Gradients of ranks that hold the same parameters, added up beside backward; and what FSDP has in common."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Enough that a message's latency does not count, and little enough that the last one is soon there.
BUCKET_BYTES = 4 << 20


class Reductions(Protocol):
    """Who adds up gradients over the data ranks.

    adds_up: each micro-batch's are added to the last one's where they lie. If not, the engine has to.
    """

    adds_up: bool

    def before_backward(self, *, last: bool) -> None:
        """Said before every micro-batch outside a pipeline."""

    def finish(self) -> None:
        """After backward: wait until the gradients are there. Before, they are undefined."""

    def changed(self) -> None:
        """The parameters of this rank were written to from outside."""


class Replicas:
    """One all-reduce a bucket of gradients.

    Buckets are filled from the end of the model, as backward goes, and always reduced in that order, so that
    ranks cannot differ. `group` is None where there is nobody to add up with.
    """

    adds_up = True

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._buckets: list[list[nn.Parameter]] = [[]]
        self._works: list[Any] = []
        self._last = False
        if group is None:
            return
        filled = 0
        for parameter in reversed(parameters):
            size = parameter.numel() * parameter.element_size()
            if filled and filled + size > BUCKET_BYTES:
                self._buckets.append([])
                filled = 0
            self._buckets[-1].append(parameter)
            filled += size
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._missing = [len(bucket) for bucket in self._buckets]
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def before_backward(self, *, last: bool) -> None:
        self._last = last

    def changed(self) -> None:
        """Nothing of them is kept elsewhere."""

    def _arrived(self, parameter: Tensor) -> None:
        if not self._last:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self._works) < len(self._buckets) and self._missing[len(self._works)] == 0:
            self._reduce(self._buckets[len(self._works)])

    @torch.no_grad()
    def _reduce(self, bucket: list[nn.Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.flatten() for grad in grads])
        for parameter, part in zip(bucket, flat.split([grad.numel() for grad in grads]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))

    def finish(self) -> None:
        if self._group is None:
            return
        for bucket in self._buckets[len(self._works) :]:
            self._reduce(bucket)
        for work in self._works:
            work.wait()
        self._works.clear()
        self._missing = [len(bucket) for bucket in self._buckets]
        self._last = False
