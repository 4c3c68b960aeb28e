"""Config → objective."""

import pkgutil
from typing import Any

from common.objective import Objective
from trainer.objectives.config import ObjectiveConfig


def build_objective(cfg: ObjectiveConfig) -> Objective:
    """Return the objective that `cfg` describes."""
    settings: dict[str, Any] = {name: value for name, value in vars(cfg).items() if name != "kind"}
    objective: Objective = pkgutil.resolve_name(cfg.objective_class)(**settings)
    return objective
