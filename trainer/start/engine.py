"""The engine of a run: its model, objective and optimiser on its layout."""

from parallel.build import build_engine
from parallel.engine import Engine, LocalParameter
from parallel.layout.layout import Layout
from parallel.transforms.recompute import compile_backend
from parallel.world.runtime import Runtime
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.optim.build import build_optimizer
from trainer.optim.no_updates import NoUpdates
from trainer.optim.optimizer import Optimizer
from trainer.process.allocation import allocating


def make_engine(
    cfg: RunConfig,
    runtime: Runtime,
    layout: Layout,
    context: ObjectiveContext,
    *,
    trains: bool = True,
) -> Engine:
    """Build the engine of the config's model, objective and optimiser on this layout, with new random
    weights.

    context: what the objective may know of the run.
    trains: False: the engine only evaluates, and holds no optimiser state.
    """
    plan = cfg.plan()

    def optimizer(parameters: list[LocalParameter]) -> Optimizer | NoUpdates:
        if not trains:
            return NoUpdates()
        backend = compile_backend(cfg.parallel.compile, runtime.device)
        return build_optimizer(parameters, cfg.optim, plan, compiler=backend)

    with allocating(cfg.model):
        return build_engine(
            layout=layout,
            runtime=runtime,
            cfg=cfg.parallel,
            plan=plan,
            model_factory=lambda: build_model(cfg.model, cfg.objective.token_loss(), cfg.finetune),
            objective=build_objective(cfg.objective, context),
            optimizer_factory=optimizer,
            precision=cfg.train.precision,
            fp8=cfg.train.fp8,
            clip=cfg.optim.clip,
            seed=cfg.seed,
            micro_batch=cfg.train.micro_batch,
            global_batch=cfg.train.global_batch,
            positions=cfg.model.positions_of_row(cfg.row_length),
            nominal_count=cfg.train.global_batch * cfg.objective.targets_per_row(cfg.data.seq_len),
            sources=len(cfg.data.sources) if len(cfg.data.sources) > 1 else 0,
        )
