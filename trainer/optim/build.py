"""Config → optimiser: which update each parameter gets, and with which settings."""

from collections.abc import Sequence

from common.model_plan import ModelPlan
from common.precision import torch_dtype
from parallel.engine import LocalParameter
from trainer.config.sections import OptimConfig
from trainer.optim.optimizer import Optimizer, ParameterGroup


def build_optimizer(
    parameters: Sequence[LocalParameter],
    cfg: OptimConfig,
    plan: ModelPlan,
    *,
    compiler: str | None = None,
) -> Optimizer:
    """Return the optimiser of `cfg.name`: `muon` updates the matrices inside blocks, AdamW everything else.

    parameters: this rank's parts; gradients are read from `.tensor.grad`.
    cfg: the config section `optim`.
    plan: the model's: where its blocks are, and what weight decay spares.
    compiler: the torch.compile backend for the rounding of bf16 state; None: eager.
    """
    if cfg.name not in ("adamw", "muon"):
        raise ValueError(f"optim.name: {cfg.name!r} is not one of adamw, muon")
    members: dict[tuple[str, float], list[LocalParameter]] = {}
    for parameter in parameters:
        in_block = plan.block_of(parameter.name) != ""
        muon = cfg.name == "muon" and in_block and len(parameter.shape) == 2
        decay = 0.0 if plan.no_decay(parameter.name, parameter.shape) else cfg.weight_decay
        members.setdefault(("muon" if muon else "adamw", decay), []).append(parameter)
    beside_muon = cfg.adamw_lr / cfg.lr if cfg.name == "muon" and cfg.adamw_lr else 1.0
    groups: list[ParameterGroup] = [
        {
            "params": [parameter.tensor for parameter in some],
            "members": some,
            "kind": kind,
            "lr": cfg.lr,
            "lr_ratio": beside_muon if kind == "adamw" else 1.0,
            "weight_decay": decay,
            "betas": (cfg.betas[0], cfg.betas[1]),
            "eps": cfg.eps,
            "momentum": cfg.momentum,
        }
        for (kind, decay), some in members.items()
    ]
    return Optimizer(groups, state_dtype=torch_dtype(cfg.state_dtype), compiler=compiler)
