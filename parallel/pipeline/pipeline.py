"""Pipeline parallelism: torch's schedules over the stages that stages.py cuts, and evaluation without them.

1F1B with 4 stages and 6 micro-batches. Fn: forward of micro-batch n; Bn: its backward, twice as long. After
each forward a rank sends the hidden state to the next stage, after each backward the gradient of its input to
the previous one:

    stage 0  F0 F1 F2 F3                   B0--- F4 B1--- F5 B2---    B3---    B4---    B5---
    stage 1     F0 F1 F2             B0--- F3 B1--- F4 B2--- F5 B3---    B4---    B5---
    stage 2        F0 F1       B0--- F2 B1--- F3 B2--- F4 B3--- F5 B4---    B5---
    stage 3           F0 B0--- F1 B1--- F2 B2--- F3 B3--- F4 B4--- F5 B5---

A stage holds the activations of at most as many micro-batches as there are stages from it to the last.

Imported only where there is a pipeline: importing torch's pipelining takes a good part of a second.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining

from common.module_interfaces import BuffersGradient
from common.objective import ModelInputs
from parallel.gradients.weight_gradients import DeferredGradients, defer_weight_gradients
from parallel.layout.layout import SCHEDULES, Layout
from parallel.layout.mesh import Mesh
from parallel.pipeline.forward_order import forward_order
from parallel.pipeline.sends import Sends, arrivals
from parallel.pipeline.stage import Stage
from parallel.relied_on import insist


class Pipeline:
    """The stages of one rank and the schedule that runs them.

    stages: stage number → module.
    hidden_shape: as in `ModelPlan`.
    layout, mesh: of the whole model.
    device: where the stages are.
    dtype: of the hidden states.
    """

    def __init__(
        self,
        stages: dict[int, nn.Module],
        hidden_shape: Callable[[tuple[int, ...]], tuple[int, ...]],
        layout: Layout,
        mesh: Mesh,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert mesh.pp.group is not None
        self.stages = stages
        self._hidden_shape = hidden_shape
        self._layout = layout
        self._group = mesh.pp.group
        self._rank = mesh.pp.rank
        self._tp = mesh.tp.size
        self._device = device
        self._dtype = dtype
        self._schedules: dict[tuple[int, ...], tuple[Any, Sends]] = {}
        self._deferred: dict[int, DeferredGradients] = {}
        if SCHEDULES[layout.schedule].splits_backward:
            self._deferred = {number: defer_weight_gradients(module) for number, module in stages.items()}
        modules = [module for stage in stages.values() for module in stage.modules()]
        self._heads = [module for module in modules if isinstance(module, BuffersGradient)]
        self._loss: Callable[[Tensor, int], Tensor] = _no_loss

    @property
    def has_first(self) -> bool:
        return 0 in self.stages

    @property
    def has_last(self) -> bool:
        return self._layout.stages - 1 in self.stages

    def train(
        self,
        inputs: Sequence[ModelInputs],
        loss: Callable[[Tensor, int], Tensor],
        *,
        features: int | None = None,
    ) -> None:
        """Forward and backward of all micro-batches; gradients accumulate in the parameters.

        loss: (last stage's output, number of the micro-batch) → the tensor that backward starts from.
            Not a view: it is detached in place afterwards, which a view does not allow. Called on the last
            stage.
        features: the last stage's output is [rows, features]; None: [rows], one loss for each row. Of no
            account on ranks without the last stage.
        """
        count = len(inputs)
        schedule, sends = self._schedule(inputs[0].x, count, features)
        self._loss = loss
        kwargs = {name: torch.cat([one.kwargs[name] for one in inputs]) for name in inputs[0].kwargs}
        x = (torch.cat([one.x for one in inputs]),) if self.has_first else ()
        # torch hands each micro-batch its part of the target: here its number, for `loss`.
        target = torch.arange(count) if self.has_last else None
        with self._one_buffer_in_each_head():
            schedule.step(*x, target=target, return_outputs=False, **kwargs)
        sends.finish()
        self._loss = _no_loss

    @contextmanager
    def _one_buffer_in_each_head(self) -> Iterator[None]:
        """While the context lasts, each head adds its weight's gradients up in one buffer.

        A head computes them in forward, and GPipe and looped BFS run all forwards first: else there would be
        one buffer for each micro-batch.
        """
        # With replicas, ZeRO-2 and 3 add each micro-batch's reduced gradients to those kept, and both must
        # have the same parameters: a head without a gradient gives zeros; see
        # `ParameterGroup.fill_with_zeros`.
        zeros = self._layout.dp_replicate > 1 and self._layout.zero >= 2
        with ExitStack() as heads:
            for head in self._heads:
                heads.enter_context(head.one_gradient_buffer(zeros=zeros))
            yield

    @torch.no_grad()
    def evaluate(self, inputs: Sequence[ModelInputs], take: Callable[[Tensor, int], None]) -> None:
        """Forward of all micro-batches, in `forward_order`.

        take: called with the last stage's output and the number of the micro-batch, in order, on the rank
            that has the last stage.
        """
        layout, here = self._layout, self._rank
        held: dict[tuple[int, int], Tensor] = {}  # (stage, micro-batch) → its input
        coming: dict[tuple[int, int], Any] = {}  # (stage, micro-batch) → the receive of its input, under way
        sent: list[tuple[Any, Tensor]] = []
        for slot in forward_order(layout, len(inputs)):
            if (mine := slot[here]) is not None:
                stage, number = mine
                if mine in coming:
                    coming.pop(mine).wait()
                x = inputs[number].x if stage == 0 else held.pop(mine)
                output = self.stages[stage](x, **inputs[number].kwargs)
                if stage + 1 == layout.stages:
                    take(output, number)
                else:
                    held[stage + 1, number] = output.contiguous()
            # Any two ranks have the same order of the messages between them, as NCCL needs. A rank waits for
            # no message of its present slot, so no ranks wait for each other in a circle.
            earlier, sent = sent, []
            for source, done in enumerate(slot):
                if done is None or done[0] + 1 == layout.stages:
                    continue
                following = (done[0] + 1, done[1])
                receiver = layout.pp_index_of(following[0])
                if source == receiver:
                    continue
                if source == here:
                    output = held.pop(following)
                    sent.append((dist.isend(output, group=self._group, group_dst=receiver), output))
                elif receiver == here:
                    shape = self._boundary(inputs[done[1]].x)
                    held[following] = torch.empty(shape, dtype=self._dtype, device=self._device)
                    coming[following] = dist.irecv(held[following], group=self._group, group_src=source)
            for work, _ in earlier:
                work.wait()
        for work, _ in sent:
            work.wait()

    def _boundary(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the hidden states between two stages on this rank, for the first stage's input x."""
        batch, seq, *rest = self._hidden_shape(tuple(x.shape))
        return (batch, seq // self._tp, *rest)

    def _schedule(self, x: Tensor, micro_batches: int, features: int | None) -> tuple[Any, Sends]:
        key = (micro_batches, *x.shape)
        if key not in self._schedules:
            self._schedules[key] = self._make_schedule(x, micro_batches, features)
        return self._schedules[key]

    def _make_schedule(self, x: Tensor, micro_batches: int, features: int | None) -> tuple[Any, Sends]:
        # Shapes are given, so that no stage has to run forward and backward to find them out.
        hidden = torch.empty(self._boundary(x), dtype=self._dtype, device="meta", requires_grad=True)
        result_shape = (len(x),) if features is None else (len(x), features)
        result = torch.empty(result_shape, device="meta", requires_grad=True)
        last = self._layout.stages - 1
        traits = SCHEDULES[self._layout.schedule]
        stages = []
        for number, module in sorted(self.stages.items()):
            stage = Stage(
                module,
                number,
                self._layout.stages,
                self._device,
                input_args=(x.to("meta") if number == 0 else hidden,),
                output_args=(result if number == last else hidden,),
                group=self._group,
                zero=self._layout.zero,
                replicas=self._layout.dp_replicate > 1,
                deferred=self._deferred.get(number),
            )
            insist("torch", stage, "args_recv_info", "grad_recv_info")
            stages.append(stage)
        several = traits.stages_per_rank > 1
        schedule = getattr(pipelining.schedules, traits.upstream)(
            stages if several else stages[0],
            micro_batches,
            loss_fn=lambda output, number: self._loss(output, int(number)),
            scale_grads=False,
        )
        # With one stage a rank, torch waits for sends within the step: 1F1B before the next send, GPipe after
        # all forwards and after all backwards. With several, only after the last micro-batch: see `sends`.
        if not several:
            return schedule, Sends({})
        insist("torch", schedule, "pipeline_order_with_comms")
        sends = Sends(arrivals(schedule.pipeline_order_with_comms)[self._rank])
        for stage in stages:
            stage.send_by(sends)
        return schedule, sends


def _no_loss(output: Tensor, number: int) -> Tensor:
    raise AssertionError("a loss is computed only while training")
