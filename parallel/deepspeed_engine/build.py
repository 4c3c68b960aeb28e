"""From a layout to a DeepSpeed engine."""

import contextlib
import math
from collections.abc import Callable

import torch
from torch import nn

from common.model_plan import ModelPlan
from common.objective import Objective
from common.precision import Precision
from parallel.config import ParallelConfig
from parallel.deepspeed_engine import settings, start
from parallel.deepspeed_engine.engine import DeepSpeedEngine
from parallel.deepspeed_engine.masters import Masters
from parallel.deepspeed_engine.optim import from_factory
from parallel.engine import OptimizerFactory
from parallel.layout.layout import Layout
from parallel.parameters.initialize import draw
from parallel.parameters.towers import blocks_of
from parallel.transforms.recompute import apply_recompute
from parallel.world.runtime import Runtime


def build_deepspeed_engine(
    *,
    layout: Layout,
    runtime: Runtime,
    cfg: ParallelConfig,
    plan: ModelPlan,
    model_factory: Callable[[], nn.Module],
    objective: Objective,
    optimizer_factory: OptimizerFactory,
    precision: Precision,
    clip: float,
    seed: int,
    micro_batch: int,
    global_batch: int,
    nominal_count: float,
    sources: int = 0,
) -> DeepSpeedEngine:
    """As `parallel.build.build_engine`. Collective. ValueError, with the remedy, for what it cannot do.

    With ZeRO-1 and above, weights, moments and accumulated gradients are float32 in every `precision`, as on
    the torch engine. Without ZeRO, DeepSpeed adds gradients up in `precision` and offers nothing else.
    """
    settings.check(cfg)
    with torch.device("meta"):
        on_meta = model_factory()
    shapes = {name: tuple(parameter.shape) for name, parameter in on_meta.named_parameters()}
    frozen = [name for name in shapes if not plan.trained(name)]
    if frozen:
        raise ValueError(
            f"parallel.engine=deepspeed trains every parameter, and {frozen[0]} is frozen: set "
            "parallel.engine=torch, or finetune.method=full"
        )
    canonical = {alias: name for name, alias in plan.tied}
    names = {name: canonical.get(name, name) for name in shapes}
    with contextlib.ExitStack() as stack:
        stack.enter_context(start.world(runtime))
        swap = stack.enter_context(settings.swap_folder(cfg, runtime.rank))
        config = settings.deepspeed_config(
            cfg,
            layout,
            swap=swap,
            precision=precision,
            micro_batch=micro_batch,
            micro_batches=layout.micro_batches(global_batch, micro_batch),
            elements=sum(map(math.prod, shapes.values())),
            largest=max(map(math.prod, shapes.values())),
        )
        with start.quiet():
            model = start.build_model(model_factory, config, runtime.device)
            for blocks in blocks_of(model, plan):
                apply_recompute(blocks, cfg.recompute)
            parameters = {names[name]: (value, shapes[name]) for name, value in model.named_parameters()}
            optimizer = from_factory(optimizer_factory, parameters)
            engine = start.prepare(model, optimizer, config)
        # After `prepare`: DeepSpeed makes its masters of weights that it has cast to the run's precision, and
        # those would not be the torch engine's.
        masters = Masters(engine, optimizer, names)
        for master in masters.each(write=True):
            master.fill(draw(master.name, master.shape, plan, seed, runtime.device))
        masters.publish()
        leave = stack.pop_all().close
    return DeepSpeedEngine(
        engine,
        optimizer,
        masters,
        objective,
        layout=layout,
        runtime=runtime,
        precision=precision,
        clip=clip,
        nominal_count=nominal_count,
        sources=sources,
        leave=leave,
    )
