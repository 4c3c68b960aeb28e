"""FSDP2's part in adding up gradients: when it reduces them, and how its messages overlap on a CPU.

What a step sends over the shard axis (n = micro-batches; HSDP adds one all-reduce over replicas at the end):

    ZeRO   parameters                                      gradients
    0      nothing: every rank holds all                   1 all-reduce, beside the last backward
    1      1 all-gather, before the first forward          1 reduce-scatter, beside the last backward
    2      1 all-gather, before the first forward          n reduce-scatters, one beside each backward
    3      2n all-gathers, before forward and backward     n reduce-scatters, one beside each backward

ZeRO-0 without mixed precision is `replicas`, and ZeRO-1 without it on a CPU is `rows`; the rest is FSDP's.
Imported only where something is sharded or cast: the import takes half a second.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.gradients.fsdp_groups import fsdp_modules, groups_of
from parallel.gradients.weight_gradients import DeferredWork
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh
from parallel.messages.collectives import Reduction, start_reduce_scatter

# Reductions under way at a time on a CPU: each holds two copies of a module's whole gradients.
IN_FLIGHT = 2


def before_backward(model: nn.Module, *, zero: int, last: bool) -> None:
    """Set what the next micro-batch's backward sends; nothing to set where `model` is not FSDP's.

    ZeRO 0 and 1 reduce gradients once, after the last micro-batch; 2 and 3 after each, so that no rank
    holds whole gradients. Parameters stay gathered between micro-batches, except under ZeRO-3. Replicas
    (HSDP) reduce once.

    FSDP's flag `is_last_backward` keeps its default, true for every micro-batch: without it FSDP goes on to
    prefetch the previous micro-batch's head after the first block, an all-gather for nothing. In a pipeline
    `Stage`, or the stage of torch that it extends, sets it False afterwards.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_reshard_after_backward(last or zero == 3)
    model.set_requires_gradient_sync(last or zero >= 2)
    if zero >= 2:
        model.set_requires_all_reduce(last)


def after_backward(
    model: nn.Module, works: list[DeferredWork], *, zero: int, last: bool, replicas: bool
) -> None:
    """Compute the deferred weight gradients of a micro-batch; accumulate and reduce them as FSDP would.

    Goes through FSDP's groups from the last to the first, as a backward does: computes a group's weight
    gradients, adds them to the accumulated ones in float32 and, from ZeRO-2 on, reduces them. So the whole
    gradients of one group exist at a time.

    model: a stage that FSDP shards.
    works: the deferred work of the micro-batch; empty afterwards.
    zero: the ZeRO stage.
    last: this is the step's last micro-batch.
    replicas: whether the shards have replicas (HSDP).
    """
    of_weight: dict[int, list[DeferredWork]] = defaultdict(list)
    while works:
        work = works.pop()
        of_weight[id(work.weight)].append(work)
    for group in reversed(groups_of(model)):
        for parameter in group.gathered:
            for work in of_weight.pop(id(parameter), ()):
                work.run()
        group.accumulate(reshard=zero == 3)
        if zero >= 2:
            if replicas:
                group.fill_with_zeros(last=last)
            group.reduce(over_replicas=last)
    assert not of_weight, "a weight is not FSDP's"


class Sharded:
    """FSDP as `replicas.Reductions`.

    FSDP overlaps messages with computation by CUDA streams. On a CPU, which has none, FSDP waits for each
    reduce-scatter as soon as it has started it, though gloo works in threads of its own. So on a CPU
    `LateReduceScatter` replaces FSDP's, and parameters are prefetched as on a GPU.
    """

    def __init__(self, stages: Sequence[nn.Module], layout: Layout, mesh: Mesh, device: torch.device) -> None:
        self._stages = stages
        self._zero = layout.zero
        self._late: LateReduceScatter | None = None
        self.adds_up = True
        if device.type != "cpu" or mesh.shard.group is None:
            return
        # FSDP reads a reduce-scatter's result at once where there are replicas too, and where it adds the
        # result to the previous micro-batch's. Outside a pipeline the engine does that addition instead.
        self.adds_up = layout.zero < 2
        reads = mesh.replicate.size > 1 or (layout.pp > 1 and layout.zero >= 2)
        self._late = LateReduceScatter(0 if reads else IN_FLIGHT)
        for stage in stages:
            cast(FSDPModule, stage)._set_unshard_async_op(True)
            for module in fsdp_modules(stage):
                module.set_custom_reduce_scatter(self._late)  # type: ignore[arg-type]

    def before_backward(self, *, last: bool) -> None:
        for stage in self._stages:
            before_backward(stage, zero=self._zero, last=last)

    def finish(self) -> None:
        if self._late is not None:
            self._late.finish()

    def changed(self) -> None:
        """Drop gathered parameters."""
        for stage in self._stages:
            for module in fsdp_modules(stage):
                module.reshard()


class LateReduceScatter:
    """A reduce-scatter for FSDP (`set_custom_reduce_scatter`) that returns before it has finished.

    At most `in_flight` of them are unfinished; `finish` waits for all.
    """

    def __init__(self, in_flight: int) -> None:
        self._in_flight = in_flight
        self._pending: deque[Reduction] = deque()

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        assert op == dist.ReduceOp.SUM
        stacked = input_tensor.view(-1, *output_tensor.shape)
        self._pending.append(start_reduce_scatter(output_tensor, stacked, group))
        while len(self._pending) > self._in_flight:
            self._pending.popleft().finish()

    def finish(self) -> None:
        while self._pending:
            self._pending.popleft().finish()
