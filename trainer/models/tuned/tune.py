"""Puts branches and adapters into a model, and takes branches out again by merging them."""

from __future__ import annotations

from typing import cast

from torch import nn

from common.model_plan import ModelPlan, matches
from trainer.models.tuned.bottleneck import Bottleneck, after
from trainer.models.tuned.config import FinetuneConfig
from trainer.models.tuned.low_rank import LoRALinear
from trainer.models.tuned.plan import ADAPTER, adapter_layers, lora_layers


def tune(model: nn.Module, plan: ModelPlan, cfg: FinetuneConfig) -> None:
    """Add the modules of `cfg.method` to a model whose own plan is `plan`. Names of what is there stay."""
    if cfg.method == "lora":
        for pattern, _ in lora_layers(plan, cfg):
            for name, layer in _matching(model, pattern):
                assert isinstance(layer, nn.Linear), f"{name} is no linear layer"
                _replace(model, name, LoRALinear(layer, rank=cfg.rank, scale=cfg.scale))
    elif cfg.method == "adapters":
        for pattern, last in adapter_layers(plan):
            for _, module in _matching(model, pattern):
                width = module.get_submodule(last).out_features
                module.add_module(ADAPTER, Bottleneck(cast(int, width), cfg.bottleneck))
                module.register_forward_hook(after)


def merge(model: nn.Module) -> None:
    """Add every branch of low rank to its layer's matrix: the model is then one without branches."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            _replace(model, name, module.merged())


def _matching(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if matches(pattern, name)]


def _replace(model: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, by)
