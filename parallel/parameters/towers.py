"""The modules of a pipeline stage that the towers of a `ModelPlan` name."""

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from common.model_plan import ModelPlan


def blocks_of(model: nn.Module, plan: ModelPlan) -> list[nn.ModuleDict]:
    """Return the blocks of each tower that this stage holds, in the order of the towers."""
    return [cast(nn.ModuleDict, model.get_submodule(tower.blocks)) for tower in plan.towers]


def present(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Return the modules at these dotted paths, without those that this stage does not hold."""
    found = (_at(model, name) for name in names)
    return [module for module in found if module is not None]


def drop(model: nn.Module, names: Iterable[str]) -> None:
    """Set the modules at these dotted paths to None."""
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, None)


def _at(model: nn.Module, name: str) -> nn.Module | None:
    module: Any = model
    for part in name.split("."):
        module = getattr(module, part)
    return module
