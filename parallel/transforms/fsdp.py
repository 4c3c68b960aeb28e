"""FSDP2 (`fully_shard`) around blocks, embedding and head: ZeRO's shards, and mixed precision.

Gradients are summed and never averaged (law 3). Imported only where something is sharded or cast: the import
takes half a second.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from common.model_plan import ModelPlan
from common.precision import Precision, torch_dtype
from parallel.gradients.fsdp_groups import fsdp_modules, groups_of
from parallel.parameters.towers import blocks_of, present
from parallel.relied_on import insist


def shard(model: nn.Module, plan: ModelPlan, mesh: DeviceMesh, *, zero: int, precision: Precision) -> None:
    """Wrap blocks, embedding and head of one stage. Master weights and reductions stay float32.

    ValueError where torch lacks something private that `gradients.fsdp` uses.
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

    for tower, blocks in zip(plan.towers, blocks_of(model, plan), strict=True):
        if not plan.tied:
            wrap(present(model, tower.first), reshard)
        for block in blocks.children():
            wrap([block], reshard)
        if not plan.tied:
            # Backward starts with the head: gathering its weight twice would buy nothing.
            wrap(present(model, tower.last), False)
    # Tied parameters have modules at both ends, so they stay with the root, which is kept through backward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for group in groups_of(model):
        group.check()
    for module, following in pairwise(order):
        # By itself FSDP gathers a module's parameters when its forward begins: early enough where the host
        # runs ahead of the device, and a moment late where it does not. Backward prefetches by itself.
        module.set_modules_to_forward_prefetch([following])
    for module in fsdp_modules(model):
        # Neither call recurses. Sums on every backend: gloo has no PREMUL_SUM, and the engine divides.
        # One rank divides by 1 anyway; if told so, FSDP would take another pass over all gradients.
        if mesh.size() > 1:
            module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def settle(model: nn.Module) -> None:
    """Gather and reshard once: FSDP may replace the shards' memory the first time."""
    for module in fsdp_modules(model):
        module.unshard()
        module.reshard()
