"""FSDP2's groups of parameters: the only file that uses what torch keeps private of them.

FSDP gathers, reshards and reduces the parameters of one `fully_shard` call as a group. Its hooks run the
group's `post_backward` when autograd has computed all gradients of the group. A schedule that defers weight
gradients has to run `post_backward` later, as torch's own pipelining does; there is no public way.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.relied_on import insist


class ParameterGroup:
    """One group of torch's."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def check(self) -> None:
        """ValueError where torch lacks something that is used here."""
        insist("torch", self._group, "fsdp_params", "post_backward", "reshard_after_backward")
        insist("torch", self._group, "reduce_grads", "all_reduce_grads")
        for parameter in self._group.fsdp_params:
            insist("torch", type(parameter), "unsharded_param")
            insist("torch", parameter, "unsharded_accumulated_grad")

    @property
    def gathered(self) -> list[nn.Parameter]:
        """The whole parameters that the model computes with; their `.grad` is the micro-batch's gradient."""
        return [one.unsharded_param for one in self._group.fsdp_params]

    @property
    def accumulated(self) -> list[Tensor | None]:
        """The whole gradients in float32 of the micro-batches so far, in the order of `gathered`."""
        return [one.unsharded_accumulated_grad for one in self._group.fsdp_params]

    def accumulate(self, *, reshard: bool) -> None:
        """Add the micro-batch's gradients to the accumulated ones, without a message.

        reshard: drop the gathered parameters afterwards.
        """
        self._group.reshard_after_backward = reshard
        self._group.reduce_grads = False
        self._group.post_backward()

    def reduce(self, *, over_replicas: bool) -> None:
        """Reduce the accumulated gradients over the shard axis; with `over_replicas` over replicas too."""
        self._group.reduce_grads, self._group.all_reduce_grads = True, over_replicas
        self._group.post_backward()

    def fill_with_zeros(self, *, last: bool) -> None:
        """Give zeros to parameters whose gradients were reduced with an earlier micro-batch's.

        FSDP adds what it reduces to what it keeps for the replicas, and both must have the same parameters.
        Where no parameter of the group has a gradient, nothing is reduced and nothing is filled, except with
        `last`, when everything that was kept is summed over the replicas.
        """
        trained = [one for one in self._group.fsdp_params if one.unsharded_param.requires_grad]
        bare = [
            one
            for one in trained
            if one.unsharded_param.grad is None and one.unsharded_accumulated_grad is None
        ]
        if last or len(bare) < len(trained):
            for one in bare:
                one.unsharded_accumulated_grad = torch.zeros_like(one.unsharded_param, dtype=torch.float32)


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def groups_of(model: nn.Module) -> list[ParameterGroup]:
    """All groups of a model, in the order in which its modules were made: the same on every rank."""
    modules: list[Any] = list(fsdp_modules(model))
    # Modules that were wrapped together share a state.
    states = dict.fromkeys(module._get_fsdp_state() for module in modules)
    return [ParameterGroup(group) for state in states for group in groups_of_state(state)]


def groups_of_state(state: Any) -> list[Any]:
    """torch's groups of a state: a list since torch 2.12, before that at most one."""
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    insist("torch", state, "_fsdp_param_group")
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []
