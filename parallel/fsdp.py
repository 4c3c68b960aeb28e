"""ZeRO 0-3 and mixed precision by FSDP2 (`fully_shard`), with gradients summed and never averaged (law 3)."""

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from parallel.plan import ModelPlan

Precision = Literal["fp32", "bf16", "fp16"]
COMPUTE_DTYPE: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def shard(model: nn.Module, plan: ModelPlan, mesh: DeviceMesh, *, zero: int, precision: Precision) -> None:
    """Wrap blocks, embedding and head of one stage. Master weights and reductions stay float32."""
    dtype = COMPUTE_DTYPE[precision]
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
    for module, following in pairwise(order):
        # By itself FSDP asks for a module's parameters when its forward begins: early enough where the host
        # runs ahead of the device, and a moment late where it does not. Backward asks ahead by itself.
        module.set_modules_to_forward_prefetch([following])
    for module in fsdp_modules(model):
        # Neither recurses. Sums on every backend: gloo has no PREMUL_SUM, and averaging is not ours to do.
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


def reshard(model: nn.Module) -> None:
    """Drop gathered parameters: the shards have changed underneath them."""
    for module in fsdp_modules(model):
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
