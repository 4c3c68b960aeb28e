"""ZeRO 0-3 and mixed precision by FSDP2 (`fully_shard`), with gradients summed and never averaged (law 3).

Imported only where something is sharded or cast: it takes half a second.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from common.model_plan import ModelPlan
from common.precision import Precision, torch_dtype
from parallel.gradients.weight_gradients import Work
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh
from parallel.messages.collectives import Reduction, start_reduce_scatter
from parallel.relied_on import insist

# Reductions under way at a time on a CPU: each holds two copies of a module's whole gradients.
IN_FLIGHT = 2


def shard(model: nn.Module, plan: ModelPlan, mesh: DeviceMesh, *, zero: int, precision: Precision) -> None:
    """Wrap blocks, embedding and head of one stage. Master weights and reductions stay float32.

    ValueError where torch has not, of what `after_backward` and `Sharded` use, all that is not public.
    """
    insist("torch", FSDPModule, "_get_fsdp_state", "_set_unshard_async_op", "set_custom_reduce_scatter")
    dtype = torch_dtype(precision)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32
    )
    reshard = zero == 3
    order: list[FSDPModule] = []

    def wrap(modules: list[nn.Module], reshard_after_forward: bool) -> None:
        if modules:
            fully_shard(modules, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
            order.append(cast(FSDPModule, modules[0]))

    if not plan.tied:
        wrap(_present(model, plan.first), reshard)
    for block in model.get_submodule(plan.blocks).children():
        wrap([block], reshard)
    if not plan.tied:
        # Backward starts with the head: gathering it twice would buy nothing.
        wrap(_present(model, plan.last), False)
    # Tied parameters have modules at both ends, so they stay with the root, which is kept through backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for group in _groups(cast(Any, model)._get_fsdp_state()):
        insist("torch", group, "fsdp_params", "post_backward", "reshard_after_backward")
        insist("torch", group, "reduce_grads", "all_reduce_grads")
        for parameter in group.fsdp_params:
            insist("torch", type(parameter), "unsharded_param")
            insist("torch", parameter, "unsharded_accumulated_grad")
    for module, following in pairwise(order):
        # By itself FSDP asks for a module's parameters when its forward begins: early enough where the host
        # runs ahead of the device, and a moment late where it does not. Backward asks ahead by itself.
        module.set_modules_to_forward_prefetch([following])
    for module in fsdp_modules(model):
        # Neither recurses. Sums on every backend: gloo has no PREMUL_SUM, and averaging is not ours to do.
        # One rank divides by 1 anyway; told so, FSDP would take another pass over all gradients.
        if mesh.size() > 1:
            module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _present(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    return [module for name in names if (module := getattr(model, name)) is not None]


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def settle(model: nn.Module) -> None:
    """Make FSDP do now what it would at the first forward: it may replace the shards' memory then."""
    for module in fsdp_modules(model):
        module.unshard()
        module.reshard()


def before_backward(model: nn.Module, *, zero: int, last: bool) -> None:
    """Set what the next micro-batch's backward sends.

    ZeRO 0 and 1 reduce gradients once, after the last micro-batch; 2 and 3 after each, so that no rank
    holds whole gradients. Parameters stay gathered between micro-batches, except under ZeRO-3. Replicas
    (HSDP) reduce once.

    FSDP takes every backward for the last of its kind, which is its default: told otherwise, it goes on to
    prefetch the previous micro-batch's head after the first block, an all-gather for nothing.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_reshard_after_backward(last or zero == 3)
    model.set_requires_gradient_sync(last or zero >= 2)
    if zero >= 2:
        model.set_requires_all_reduce(last)


def after_backward(model: nn.Module, works: list[Work], *, zero: int, last: bool, replicas: bool) -> None:
    """Run what was put off, and do what FSDP does in a backward with gradients that have come apart from it.

    Block by block, as there: add them up in float32 and, from ZeRO-2 on, reduce them, so that no more of them
    is whole at a time. Empties `works`. replicas: of shards (HSDP).
    """
    of_weight: dict[int, list[Work]] = defaultdict(list)
    while works:
        work = works.pop()
        of_weight[id(work.weight)].append(work)
    # As torch's pipelining goes about it; there is no public way. Modules wrapped together share a state; the
    # order is every rank's.
    modules: list[Any] = list(fsdp_modules(model))
    states = dict.fromkeys(module._get_fsdp_state() for module in modules)
    for group in reversed([group for state in states for group in _groups(state)]):
        for parameter in group.fsdp_params:
            for work in of_weight.pop(id(parameter.unsharded_param), ()):
                work.run()
        group.reshard_after_backward = zero == 3
        group.reduce_grads = False
        group.post_backward()
        if zero >= 2:
            group.reduce_grads, group.all_reduce_grads = True, last
            if replicas:
                _fill(group.fsdp_params, last=last)
            group.post_backward()
    assert not of_weight, "a weight is not FSDP's"


def _fill(parameters: list[Any], *, last: bool) -> None:
    """Zeros for gradients that went with an earlier micro-batch's: replicas add up like with like.

    None where there is no gradient at all, but for the last time, when what is there is summed over replicas.
    """
    trained = [one for one in parameters if one.unsharded_param.requires_grad]
    bare = [
        one for one in trained if one.unsharded_param.grad is None and one.unsharded_accumulated_grad is None
    ]
    if last or len(bare) < len(trained):
        for one in bare:
            one.unsharded_accumulated_grad = torch.zeros_like(one.unsharded_param, dtype=torch.float32)


def _groups(state: Any) -> list[Any]:
    """A state has several since torch 2.12, and before at most one."""
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    insist("torch", state, "_fsdp_param_group")
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []


class Sharded:
    """FSDP as `replicas.Reductions`.

    It overlaps by streams. A CPU has none: FSDP waits there for each reduce-scatter where it starts it,
    though gloo works in threads of its own. Here they end late, and parameters are asked for ahead as on a
    GPU.
    """

    def __init__(self, stages: Sequence[nn.Module], layout: Layout, mesh: Mesh, device: torch.device) -> None:
        self._stages = stages
        self._zero = layout.zero
        self._late: LateReduceScatter | None = None
        self.adds_up = True
        if device.type != "cpu" or mesh.shard.group is None:
            return
        # FSDP reads a reduce-scatter's result at once where it has replicas too, and where it adds it to the
        # last micro-batch's. Outside a pipeline the engine does that addition instead.
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
    """A reduce-scatter for FSDP (`set_custom_reduce_scatter`), at most `in_flight` of them unfinished."""

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
