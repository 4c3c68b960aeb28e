"""Config → optimiser: which update each parameter gets, and with which settings."""

from collections.abc import Callable, Sequence

from common.precision import torch_dtype
from parallel.engine import LocalParameter
from trainer.config.sections import OptimConfig
from trainer.optim.optimizer import Optimizer, ParameterGroup

ByNameAndShape = Callable[[str, tuple[int, ...]], bool]
"""(a parameter's name, its global shape) → whether something holds for it."""


def build_optimizer(
    parameters: Sequence[LocalParameter],
    cfg: OptimConfig,
    *,
    no_decay: ByNameAndShape,
    hidden_matrix: ByNameAndShape,
    compiler: str | None = None,
) -> Optimizer:
    """Return the optimiser of `cfg.name`, with weight decay only where `no_decay` is false.

    parameters: this rank's parts; gradients are read from `.tensor.grad`.
    cfg: the config section `optim`.
    no_decay: whether a parameter is exempt from weight decay (norms, one-dimensional ones).
    hidden_matrix: whether Muon may update a parameter (matrices inside blocks).
    compiler: the torch.compile backend for the rounding of bf16 state; None: eager.
    """
    if cfg.name not in ("adamw", "muon"):
        raise ValueError(f"optim.name: {cfg.name!r} is not one of adamw, muon")
    members: dict[tuple[str, float], list[LocalParameter]] = {}
    for parameter in parameters:
        muon = cfg.name == "muon" and hidden_matrix(parameter.name, parameter.shape)
        decay = 0.0 if no_decay(parameter.name, parameter.shape) else cfg.weight_decay
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
