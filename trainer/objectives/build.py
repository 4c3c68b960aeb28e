"""Config → objective. A registry is a dictionary."""

from collections.abc import Callable

from common.objective import Objective
from trainer.config.sections import ObjectiveConfig
from trainer.objectives.causal_lm import CausalLM

OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {"causal_lm": lambda cfg: CausalLM()}


def build_objective(cfg: ObjectiveConfig) -> Objective:
    """The objective of `cfg.kind`."""
    return OBJECTIVES[cfg.kind](cfg)
