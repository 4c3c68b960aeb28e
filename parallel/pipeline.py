"""Pipeline parallelism: running torch's schedules over the stages that `stages` cuts.

Imported only where there is a pipeline: torch's pipelining takes a good part of a second.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._backward import stage_backward

from parallel import fsdp
from parallel.engine import ModelInputs
from parallel.mesh import Mesh
from parallel.plan import SCHEDULES, Layout
from parallel.weight_gradients import WeightGradients, apart


class _Stage(PipelineStage):
    """A stage that reduces gradients as its ZeRO stage says, where torch's own reduces once, whatever it is;
    and splits backward, where its schedule does, by putting products off.
    """

    zero = 1
    replicas = False
    weight_gradients = WeightGradients()

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        module: Any = self.submod
        sharded = isinstance(module, FSDPModule)
        if backward_type == "weight":
            works = bwd_kwargs["param_groups"]
            if sharded:
                # No schedule runs a whole backward between a micro-batch's two parts: gradients of two types
                # would meet.
                fsdp.after_backward(module, works, zero=self.zero, last=last_backward, replicas=self.replicas)
            while works:
                works.pop().run()
            return (), None
        if backward_type == "full" and (self.zero < 2 or not sharded):
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if sharded:
            fsdp.before_backward(module, zero=self.zero, last=last_backward)
            # The schedule's own last action waits for the reductions and reshards.
            module.set_is_last_backward(False)
            module.set_reshard_after_backward(self.zero == 3)
            if backward_type == "input":  # reduced when the weights' gradients have come
                module.set_requires_gradient_sync(False)
        output, output_grads = bwd_kwargs["stage_output"], bwd_kwargs["output_grads"]
        if output_grads is None and isinstance(output, tuple):
            (output,) = output  # the loss, which "input" puts into a tuple and `stage_backward` wants bare
        with self.weight_gradients.collected() if backward_type == "input" else nullcontext() as put_off:
            grads = stage_backward(output, output_grads, bwd_kwargs["input_values"])
        return grads, put_off


class Pipeline:
    """The stages of one rank and the schedule that runs them.

    first: the modules of the first stage on the meta device, for the shape of what passes between stages.
    """

    def __init__(
        self,
        stages: dict[int, nn.Module],
        first: Sequence[nn.Module],
        layout: Layout,
        mesh: Mesh,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert mesh.pp.group is not None
        self.stages = stages
        self._first = first
        self._layout = layout
        self._group = mesh.pp.group
        self._tp = mesh.tp.size
        self._device = device
        self._dtype = dtype
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._weight_gradients: dict[int, WeightGradients] = {}
        if SCHEDULES[layout.schedule].splits_backward:
            self._weight_gradients = {number: apart(module) for number, module in stages.items()}
        self._loss: Callable[[Tensor, int], Tensor] = _no_loss

    @property
    def has_first(self) -> bool:
        return 0 in self.stages

    @property
    def has_last(self) -> bool:
        return self._layout.stages - 1 in self.stages

    def train(self, inputs: Sequence[ModelInputs], loss: Callable[[Tensor, int], Tensor]) -> None:
        """Forward and backward of all micro-batches; gradients accumulate in the parameters.

        loss: (last stage's output, number of the micro-batch) → what backward starts from. Called on the
        last stage.
        """
        count = len(inputs)
        schedule = self._schedule(inputs[0].x, count)
        self._loss = loss
        kwargs = {name: torch.cat([one.kwargs[name] for one in inputs]) for name in inputs[0].kwargs}
        x = (torch.cat([one.x for one in inputs]),) if self.has_first else ()
        target = torch.arange(count) if self.has_last else None
        schedule.step(*x, target=target, return_outputs=False, **kwargs)
        self._loss = _no_loss

    @torch.no_grad()
    def evaluate(self, inputs: ModelInputs) -> Tensor | None:
        """Forward of one micro-batch through all stages; the output on the rank with the last stage."""
        last = self._layout.stages - 1
        passed: Tensor | None = None
        for stage, module in sorted(self.stages.items()):
            if stage == 0:
                x = inputs.x
            elif stage - 1 in self.stages:
                assert passed is not None
                x = passed
            else:
                x = torch.empty(self._boundary(inputs.x), dtype=self._dtype, device=self._device)
                dist.recv(x, group=self._group, group_src=self._layout.rank_of_stage(stage - 1))
            passed = module(x, **inputs.kwargs)
            if stage < last and stage + 1 not in self.stages:
                group_rank = self._layout.rank_of_stage(stage + 1)
                dist.send(passed.contiguous(), group=self._group, group_dst=group_rank)
        return passed if self.has_last else None

    def _boundary(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the hidden states between two stages on this rank, for the first stage's input x."""
        hidden = torch.empty(x.shape, dtype=x.dtype, device="meta")
        for module in self._first:
            hidden = module(hidden)
        batch, seq, *rest = hidden.shape
        return (batch, seq // self._tp, *rest)

    def _schedule(self, x: Tensor, micro_batches: int) -> Any:
        key = (micro_batches, *x.shape)
        if key not in self._schedules:
            self._schedules[key] = self._make_schedule(x, micro_batches)
        return self._schedules[key]

    def _make_schedule(self, x: Tensor, micro_batches: int) -> Any:
        # Shapes are given, so that no stage has to run forward and backward to find them out.
        hidden = torch.empty(self._boundary(x), dtype=self._dtype, device="meta", requires_grad=True)
        result = torch.empty(1, device="meta", requires_grad=True)
        last = self._layout.stages - 1
        traits = SCHEDULES[self._layout.schedule]
        stages = []
        for number, module in sorted(self.stages.items()):
            stage = _Stage(
                module,
                number,
                self._layout.stages,
                self._device,
                input_args=(x.to("meta") if number == 0 else hidden,),
                output_args=(result if number == last else hidden,),
                group=self._group,
            )
            stage.zero, stage.replicas = self._layout.zero, self._layout.dp_replicate > 1
            if traits.splits_backward:
                stage.weight_gradients = self._weight_gradients[number]
            stages.append(stage)
        schedule = getattr(pipelining.schedules, traits.upstream)
        return schedule(
            stages if traits.stages_per_rank > 1 else stages[0],
            micro_batches,
            loss_fn=lambda output, number: self._loss(output, int(number)),
            scale_grads=False,
        )


def _no_loss(output: Tensor, number: int) -> Tensor:
    raise AssertionError("a loss is only asked for while training")
