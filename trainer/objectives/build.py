"""Config → objective."""

import pkgutil

from common.objective import Objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.context import ObjectiveContext


def build_objective(cfg: ObjectiveConfig, context: ObjectiveContext) -> Objective:
    """Return the objective that `cfg` describes, in the run that `context` describes."""
    objective: Objective = pkgutil.resolve_name(cfg.objective_class)(cfg, context)
    return objective
