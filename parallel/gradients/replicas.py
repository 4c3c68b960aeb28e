"""Adding gradients up over the data ranks while backward still runs: the interface of all three ways,
buckets, and the way by all-reduce.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Large enough that latency does not matter; small enough that the last message, which backward no longer
# hides, is short.
BUCKET_BYTES = 8 << 20


class Reductions(Protocol):
    """Adds gradients up over the data ranks: `Replicas`, `rows.Rows` or `fsdp.Sharded`.

    adds_up: whether the gradients of successive micro-batches are added up here too. If not, the engine takes
        and adds them after each backward; in a pipeline that is never needed.
    """

    adds_up: bool

    def before_backward(self, *, last: bool) -> None:
        """To be called before each micro-batch's backward, except in a pipeline.

        last: this is the step's last micro-batch.
        """

    def finish(self) -> None:
        """Wait until the summed gradients are there, after backward. Until then they are undefined."""

    def changed(self) -> None:
        """To be called after this rank's parameters have been written to from outside."""


def in_buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters into buckets, whose gradients go in one message each. Buckets are in the order of
    their first parameters.

    A parameter that would fill a bucket has one to itself, and its gradient is sent without a copy. For
    smaller ones, more messages were measured to cost as much as the copies.
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
    """Calls `start` for each bucket during the step's last backward, once autograd has all gradients of the
    bucket.

    Buckets start in the given order, the same on every rank: a bucket waits for those before it.

    start: takes the number of the bucket.
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
        """Start the buckets not started during backward: all of them in a pipeline, else those from the first
        on that has a parameter to which the last backward gave no gradient.
        """
        while self._started < len(self._buckets):
            self._next()
        self._await_all()
        self.last = False


class Replicas:
    """One all-reduce for each bucket of gradients. `group` is None where there is one data rank."""

    adds_up = True

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._works: list[Any] = []
        # From the end of the model, in the order of backward.
        self._buckets = in_buckets(parameters)[::-1] if group is not None else []
        self._arrivals = Arrivals(self._buckets, self._reduce)

    def before_backward(self, *, last: bool) -> None:
        self._arrivals.last = last

    def changed(self) -> None:
        """Nothing to do: no copies are kept."""

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
    """The gradient of each parameter; zeros for one that nothing used."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """All elements, one part after another, flat. A single part is not copied."""
    return parts[0].flatten() if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
