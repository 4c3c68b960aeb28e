"""One stage of a pipeline, driven by torch's schedules.

Imported only where there is a pipeline: torch's pipelining takes a good part of a second.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from parallel.gradients import fsdp
from parallel.gradients.weight_gradients import DeferredGradients, DeferredWork
from parallel.pipeline.sends import Pass, Sends
from parallel.relied_on import borrow, insist

stage_backward = borrow("torch", "torch.distributed.pipelining._backward", "stage_backward")
insist(
    "torch", PipelineStage, "_prepare_forward_infra", "_prepare_backward_infra", "backward_maybe_with_nosync"
)
insist("torch", PipelineStage, "get_fwd_recv_ops", "get_bwd_recv_ops", "get_fwd_send_ops", "get_bwd_send_ops")
insist("torch", PipelineStage, "forward_one_chunk", "backward_one_chunk")


class Stage(PipelineStage):
    """torch's stage with four differences.

    - Gradients are reduced as the ZeRO stage demands; torch's stage always reduces them once.
    - Backward is split by deferring weight gradients, where the schedule splits backward.
    - A received message has memory from its receive until it is used; torch's stage has memory for all
      micro-batches, for good.
    - A sent message has memory until it is received (`send_by`); torch's schedules keep it to the step's end.

    zero: the ZeRO stage.
    replicas: whether shards have replicas (HSDP).
    deferred: what defers the weight gradients; None where the schedule does not split backward.
    """

    def __init__(
        self, *args: Any, zero: int, replicas: bool, deferred: DeferredGradients | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._zero = zero
        self._replicas = replicas
        self._deferred = deferred
        self._sends: Sends | None = None
        self._declared = tuple(kwargs["output_args"][0].shape)

    def send_by(self, sends: Sends) -> None:
        """Hand every message to `sends` from now on, in the schedule's place."""
        self._sends = sends

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_forward_infra(*args, **kwargs)

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_memory():
            return super()._prepare_backward_infra(*args, **kwargs)

    @contextmanager
    def _without_memory(self) -> Iterator[None]:
        """Have torch make its buffers on the meta device. `Stage` is given all shapes, so torch allocates
        nothing but these buffers here.
        """
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        # torch 2.11 greets the neighbours before the first step: under a V-shaped schedule a rank is its own
        # neighbour, and gloo cannot send to itself.
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
        """Start the sends, and return those that are left to the schedule."""
        if self._sends is None:
            return operations
        self._sends.start(sent, operations)
        return []

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        if self._sends is not None:
            self._sends.release(Pass(False, self.stage_index, fwd_chunk_id))
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        if not self.is_last and tuple(output.shape) != self._declared:  # else the message would not fit
            raise ValueError(
                f"pipeline stage {self.stage_index} gives hidden states {tuple(output.shape)}, and "
                f"hidden_shape of the model's plan says {self._declared}: correct the plan"
            )
        if not self.is_first:  # backward has its own reference to what was received
            _take_back(self.args_recv_info[fwd_chunk_id])
        return output

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        if self._sends is not None:
            self._sends.release(Pass(True, self.stage_index, bwd_chunk_id))
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        if not self.is_last:
            _take_back(self.grad_recv_info[bwd_chunk_id])
        elif loss is not None:
            loss.detach_()  # the schedule keeps the loss, and through its graph the stage's input

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Run one backward: "full"; or "input", which also returns the deferred weight work, and later
        "weight", which gets that work back as `param_groups`.
        """
        module: Any = self.submod
        sharded = isinstance(module, FSDPModule)
        if backward_type == "weight":
            works = bwd_kwargs["param_groups"]
            if sharded:
                # This relies on the schedules: none runs a "full" backward between a micro-batch's "input"
                # and "weight" parts. Gradients of two types would be added up.
                fsdp.after_backward(
                    module, works, zero=self._zero, last=last_backward, replicas=self._replicas
                )
            while works:
                works.pop().run()
            return (), None
        if backward_type == "full" and (self._zero < 2 or not sharded):
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if sharded:
            fsdp.before_backward(module, zero=self._zero, last=last_backward)
            # The schedule's own last action waits for the reductions and reshards.
            module.set_is_last_backward(False)
            module.set_reshard_after_backward(self._zero == 3)
            if backward_type == "input":  # reduced once the weight gradients are computed
                module.set_requires_gradient_sync(False)
        output, output_grads = bwd_kwargs["stage_output"], bwd_kwargs["output_grads"]
        if output_grads is None and isinstance(output, tuple):
            # The loss: for "input" torch wraps it in a tuple, and `stage_backward` takes the tensor.
            (output,) = output
        with self._collected(backward_type) as works:
            grads = stage_backward(output, output_grads, bwd_kwargs["input_values"])
        return grads, works

    def _collected(self, backward_type: str) -> AbstractContextManager[list[DeferredWork] | None]:
        """A context whose list fills with deferred weight gradients, for an "input" backward; for other
        types one that gives None.
        """
        if backward_type != "input":
            return nullcontext()
        assert self._deferred is not None, 'an "input" backward, but the stage was made without `deferred`'
        return self._deferred.collected()


def _lend(infos: Sequence[Any], device: torch.device) -> None:
    """Allocate memory for a message that is about to be received."""
    for info in infos:
        info.buffer = torch.empty_like(info.buffer, device=device, requires_grad=info.buffer.requires_grad)


def _take_back(infos: Sequence[Any]) -> None:
    """Drop torch's reference to the memory of a received message."""
    for info in infos:
        template = info.buffer.detach()
        info.buffer = torch.empty_like(template, device="meta", requires_grad=info.buffer.requires_grad)
