"""From a model's factory to this rank's part of the model: every transformation, in the one order that works.

For each stage of this rank, on the meta device: cut the stage out, convert its linear layers to fp8, tensor
parallelism, freeze what is not trained, context parallelism, recomputation, compilation, FSDP. Then allocate
memory and draw the first values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.model_plan import ModelPlan
from common.precision import Precision
from parallel.config import ParallelConfig
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh
from parallel.parameters.initialize import freeze, initialize, to_device
from parallel.parameters.ownership import assign_owners
from parallel.parameters.sharded_parameter import ShardedParameter, make_sharded_parameter
from parallel.parameters.towers import blocks_of
from parallel.pipeline.stages import cut, keep_stage
from parallel.transforms import float8, recompute
from parallel.transforms.context import context_parallel
from parallel.transforms.decoding import decoding_parallel
from parallel.transforms.tensor import tensor_parallel


@dataclass(frozen=True)
class Parallelized:
    """This rank's part of a model.

    stages: stage number → module.
    parameters: of all stages.
    """

    stages: dict[int, nn.Module]
    parameters: list[ShardedParameter]


def parallelize(
    plan: ModelPlan,
    model_factory: Callable[[], nn.Module],
    cfg: ParallelConfig,
    layout: Layout,
    mesh: Mesh,
    device: torch.device,
    *,
    precision: Precision,
    fp8: str,
    seed: int,
) -> Parallelized:
    """Build this rank's stages, sharded, in the device's memory and with their first values.

    plan: what the model declares about itself.
    model_factory: builds the whole model on the meta device.
    cfg, layout, mesh: how to cut it.
    precision: what FSDP casts parameters to for forward and backward.
    fp8: see `float8`.
    seed: of the first values.
    """
    stages: dict[int, nn.Module] = {}
    held: list[ShardedParameter] = []
    for number in layout.stages_of(mesh.pp.rank):
        with torch.device("meta"):
            model = model_factory()
        if layout.pp > 1:
            cuts = cut(model, plan, cfg.cut, layout.stages)
            keep_stage(model, plan, number, cuts)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        towers = blocks_of(model, plan)
        for blocks in towers:
            float8.convert(blocks, fp8, tp=mesh.tp.size)
        tp_dims = tensor_parallel(model, plan, mesh.tp, asynchronous=cfg.async_tp)
        freeze(model, plan)  # before FSDP, which keeps for each parameter whether it has a gradient
        context_parallel(model, plan, mesh.cp)
        for blocks in towers:
            recompute.apply_recompute(blocks, cfg.recompute)
        if backend := recompute.compile_backend(cfg.compile, device):
            recompute.apply_compile(model, [block for blocks in towers for block in blocks.values()], backend)
        if mesh.data is not None:
            from parallel.transforms import fsdp

            fsdp.shard(model, plan, mesh.data, zero=cfg.zero, precision=precision)
        _materialize(model, plan, device)
        if mesh.data is not None:
            fsdp.settle(model)
        stages[number] = model
        parameters = _sharded_parameters(model, plan, shapes, tp_dims, mesh, across_stages=layout.stages > 1)
        initialize(parameters, plan, seed)
        held += parameters
    assign_owners([one for one in held if one.trained], mesh)
    return Parallelized(stages, held)


def _materialize(model: nn.Module, plan: ModelPlan, device: torch.device) -> None:
    assert not list(model.buffers()), "a buffer would be left undefined: compute it, or make it a parameter"
    to_device(model, device)
    for canonical, alias in plan.tied:  # allocation has given each of a tied pair memory of its own
        if (owner := _owner(model, canonical)) and (other := _owner(model, alias)):
            other[0]._parameters[other[1]] = owner[0]._parameters[owner[1]]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    path, _, own = name.rpartition(".")
    module: Any = model
    for part in path.split("."):
        module = getattr(module, part)
        if module is None:
            return None
    return module, own


def _sharded_parameters(
    model: nn.Module,
    plan: ModelPlan,
    shapes: dict[str, tuple[int, ...]],
    tp_dims: dict[str, int],
    mesh: Mesh,
    *,
    across_stages: bool,
) -> list[ShardedParameter]:
    canonical_of = {alias: canonical for canonical, alias in plan.tied}
    names = {name for pair in plan.tied for name in pair}
    return [
        make_sharded_parameter(
            canonical_of.get(name, name),
            parameter,
            shapes[name],
            tp_dims.get(name),
            mesh,
            tied=across_stages and name in names,
            duplicate=across_stages and name in canonical_of,
            trained=parameter.requires_grad,
        )
        for name, parameter in model.named_parameters()
    ]


def parallelize_for_decoding(
    plan: ModelPlan,
    model_factory: Callable[[], nn.Module],
    layout: Layout,
    mesh: Mesh,
    device: torch.device,
) -> Parallelized:
    """Build this rank's part of a model that reads token by token, in the device's memory, without values.

    plan, model_factory: as of `parallelize`.
    layout, mesh: of tensor parallelism alone; every group of tp ranks holds the whole model.
    """
    assert layout.pp == layout.cp == 1 and mesh.data is None, layout
    with torch.device("meta"):
        model = model_factory()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tp_dims = decoding_parallel(model, plan, mesh.tp)
    _materialize(model, plan, device)
    parameters = _sharded_parameters(model, plan, shapes, tp_dims, mesh, across_stages=False)
    return Parallelized({0: model.eval()}, parameters)
