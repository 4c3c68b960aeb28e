"""One stage of a pipeline as torch's schedules drive it, where torch's own does not do.

Imported only where there is a pipeline: torch's pipelining takes a good part of a second.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from parallel.gradients.weight_gradients import WeightGradients
from parallel.pipeline.sends import Pass, Sends
from parallel.relied_on import borrow, insist
from parallel.transforms import fsdp

stage_backward = borrow("torch", "torch.distributed.pipelining._backward", "stage_backward")
insist(
    "torch", PipelineStage, "_prepare_forward_infra", "_prepare_backward_infra", "backward_maybe_with_nosync"
)
insist("torch", PipelineStage, "get_fwd_recv_ops", "get_bwd_recv_ops", "get_fwd_send_ops", "get_bwd_send_ops")
insist("torch", PipelineStage, "forward_one_chunk", "backward_one_chunk")


class Stage(PipelineStage):
    """A stage that reduces gradients as its ZeRO stage says, where torch's own reduces once, whatever it is;
    splits backward, where its schedule does, by putting products off; has memory for what it receives from
    the receive on until that is used, where torch's own has it for every micro-batch and for good; and, given
    `sends`, for what it sends until that is received, where torch's schedules keep it to the step's end.
    """

    zero = 1
    replicas = False
    weight_gradients = WeightGradients()
    sends: Sends | None = None

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_forward_infra(*args, **kwargs)

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_backward_infra(*args, **kwargs)

    @contextmanager
    def _without_memory(self) -> Iterator[None]:
        """Let buffers be made on the meta device. Shapes are given, so nothing else is made in there."""
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        # torch 2.11 greets the neighbours before the first step: under a V-shaped schedule a rank is its own,
        # and gloo does not send to itself.
        return [one for one in super()._get_init_p2p_neighbors_ops() if one.group_peer != self.group_rank]

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        if not self.is_first:
            _lend(self.args_recv_info[fwd_chunk_id], self.device)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if not self.is_last:
            _lend(self.grad_recv_info[bwd_chunk_id], self.device)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._send(Pass(False, self.stage_index, fwd_chunk_id), super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._send(Pass(True, self.stage_index, bwd_chunk_id), super().get_bwd_send_ops(bwd_chunk_id))

    def _send(self, sent: Pass, operations: list[dist.P2POp]) -> list[dist.P2POp]:
        """What is left for the schedule to send."""
        if self.sends is None:
            return operations
        self.sends.start(sent, operations)
        return []

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        if self.sends is not None:
            self.sends.release(Pass(False, self.stage_index, fwd_chunk_id))
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        if not self.is_first:  # from here on it is backward's
            _take_back(self.args_recv_info[fwd_chunk_id])
        return output

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        if self.sends is not None:
            self.sends.release(Pass(True, self.stage_index, bwd_chunk_id))
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        if not self.is_last:
            _take_back(self.grad_recv_info[bwd_chunk_id])
        elif loss is not None:
            loss.detach_()  # the schedule keeps it, and by it the stage's input

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


def _lend(infos: Sequence[Any], device: torch.device) -> None:
    """Give what is about to be received memory of its own."""
    for info in infos:
        info.buffer = torch.empty_like(info.buffer, device=device, requires_grad=info.buffer.requires_grad)


def _take_back(infos: Sequence[Any]) -> None:
    for info in infos:
        shape = info.buffer.detach()
        info.buffer = torch.empty_like(shape, device="meta", requires_grad=info.buffer.requires_grad)
