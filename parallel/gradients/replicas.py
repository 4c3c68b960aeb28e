"""Gradients of ranks that hold the same parameters, added up beside backward; and what FSDP has in common."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Enough that a message's latency does not count, and little enough that the last one is soon there.
BUCKET_BYTES = 8 << 20


class Reductions(Protocol):
    """Adds up gradients over the data ranks: `Replicas`, `rows.Rows` or `fsdp.Sharded`.

    adds_up: each micro-batch's are added to the last one's where they lie. If not, the engine has to.
    """

    adds_up: bool

    def before_backward(self, *, last: bool) -> None:
        """Said before every micro-batch outside a pipeline."""

    def finish(self) -> None:
        """After backward: wait until the gradients are there. Before, they are undefined."""

    def changed(self) -> None:
        """The parameters of this rank were written to from outside."""


def in_buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters whose gradients go in one message, in the order of each bucket's first one.

    One that would fill a bucket is alone, and its gradient is sent from where it lies. Below that size, more
    messages were seen to cost what the copies would.
    """
    buckets: list[list[nn.Parameter]] = []
    filling: list[nn.Parameter] = []
    filled = BUCKET_BYTES
    for parameter in parameters:
        if parameter.nbytes >= BUCKET_BYTES:
            buckets.append([parameter])
            continue
        if filled + parameter.nbytes > BUCKET_BYTES:
            filling, filled = [], 0
            buckets.append(filling)
        filling.append(parameter)
        filled += parameter.nbytes
    return buckets


class Arrivals:
    """Starts buckets, by their numbers, beside the last backward, each when all its gradients have come.

    Always in the given order, so that ranks cannot differ: a bucket waits for those before it.
    """

    def __init__(self, buckets: Sequence[list[nn.Parameter]], start: Callable[[int], None]) -> None:
        self._buckets = buckets
        self._start = start
        self._bucket_of = {p: number for number, bucket in enumerate(buckets) for p in bucket}
        self.last = False
        self._await_all()
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _await_all(self) -> None:
        self._started = 0
        self._missing = [len(bucket) for bucket in self._buckets]

    def _arrived(self, parameter: Tensor) -> None:
        if not self.last:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while self._started < len(self._buckets) and self._missing[self._started] == 0:
            self._next()

    @torch.no_grad()
    def _next(self) -> None:
        self._started += 1
        self._start(self._started - 1)

    def finish(self) -> None:
        """After backward: start the rest, whose gradients have come outside the last one or not at all."""
        while self._started < len(self._buckets):
            self._next()
        self._await_all()
        self.last = False


class Replicas:
    """One all-reduce a bucket of gradients. `group` is None where there is nobody to add up with."""

    adds_up = True

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._works: list[Any] = []
        # From the end of the model, as backward goes.
        self._buckets = in_buckets(parameters)[::-1] if group is not None else []
        self._arrivals = Arrivals(self._buckets, self._reduce)

    def before_backward(self, *, last: bool) -> None:
        self._arrivals.last = last

    def changed(self) -> None:
        """Nothing of them is kept elsewhere."""

    def _reduce(self, number: int) -> None:
        bucket = self._buckets[number]
        grads = gradients(bucket)
        flat = joined(grads)
        for parameter, part in zip(bucket, flat.split([grad.numel() for grad in grads]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._works.append(dist.all_reduce(flat, group=self._group, async_op=True))

    def finish(self) -> None:
        self._arrivals.finish()
        for work in self._works:
            work.wait()
        self._works.clear()


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Zeros of a parameter that nothing used."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """All elements, one part after another, flat. A single part is not copied."""
    return parts[0].flatten() if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
