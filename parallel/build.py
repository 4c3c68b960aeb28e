"""From a layout to an engine."""

from collections.abc import Callable

from torch import nn

from common.model_plan import ModelPlan
from common.objective import Objective
from common.precision import Precision
from parallel.config import ParallelConfig
from parallel.engine import Engine, OptimizerFactory
from parallel.layout.layout import Layout, check_batch
from parallel.layout.mesh import make_mesh
from parallel.torch_engine.engine import TorchEngine
from parallel.torch_engine.parallelize import parallelize
from parallel.transforms import async_tensor, float8, kernels
from parallel.world.runtime import Runtime


def build_engine(
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
    positions: int,
    nominal_count: float,
    fp8: str = "none",
    sources: int = 0,
) -> Engine:
    """Build the model on this rank's device, with its optimiser. Collective.

    layout, runtime: the ranks, and which one this is.
    cfg: the `parallel:` section.
    plan: what the model declares about itself.
    model_factory: builds the whole model on the current default device.
    objective: makes the model's inputs of a batch, and losses of its output.
    optimizer_factory: makes an optimiser over this rank's parts of the parameters.
    precision: of forward and backward; master weights are float32.
    clip: the largest global gradient norm, 0 for none.
    seed: of the first weights.
    micro_batch: rows of a micro-batch.
    global_batch: rows of a step, over all data ranks.
    positions: of a row in the model's hidden states, such as its tokens.
    nominal_count: about how many targets a global batch has; see `Normalisation`.
    fp8: see `float8`.
    sources: how many data sources' losses a step adds up apart; 0: none.

    ValueError if the batch or a setting does not fit the layout.
    """
    check_batch(layout, global_batch=global_batch, micro_batch=micro_batch, positions=positions)
    if cfg.engine == "deepspeed":
        # Imported only here: the import takes most of a second and needs the extra `deepspeed`.
        from parallel.deepspeed_engine.build import build_deepspeed_engine

        return build_deepspeed_engine(
            layout=layout,
            runtime=runtime,
            cfg=cfg,
            plan=plan,
            model_factory=model_factory,
            objective=objective,
            optimizer_factory=optimizer_factory,
            precision=precision,
            clip=clip,
            seed=seed,
            micro_batch=micro_batch,
            global_batch=global_batch,
            nominal_count=nominal_count,
            sources=sources,
        )
    float8.check(fp8, runtime.device, positions=micro_batch * positions // layout.cp)
    kernels.use(cfg.attention, runtime.device)
    # Without a cast and without shards the bare module is fastest; with ZeRO-1's shards on a CPU, `rows` is.
    sharded = layout.zero > 0 and layout.dp * layout.cp > 1
    rows = layout.zero == 1 and layout.dp_replicate == 1 and runtime.device.type == "cpu"
    fsdp = (sharded and not rows) or precision != "fp32"
    mesh = make_mesh(layout, runtime.device, fsdp=fsdp)
    if cfg.async_tp:
        async_tensor.check(runtime.device, mesh.tp)
    parallelized = parallelize(
        plan, model_factory, cfg, layout, mesh, runtime.device, precision=precision, fp8=fp8, seed=seed
    )
    return TorchEngine(
        plan,
        parallelized,
        objective,
        optimizer_factory,
        layout=layout,
        mesh=mesh,
        rank=runtime.rank,
        device=runtime.device,
        precision=precision,
        clip=clip,
        nominal_count=nominal_count,
        sources=sources,
    )
