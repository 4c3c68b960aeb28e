"""Config → model."""

from __future__ import annotations

import pkgutil

from torch import nn

from trainer.models.config import ModelConfig


def build_model(cfg: ModelConfig) -> nn.Module:
    """Return the model that `cfg` describes, on the current default device (`with torch.device("meta"):`).

    Parameters hold torch's default values: the engine draws them by the model's plan.
    """
    model: nn.Module = pkgutil.resolve_name(cfg.model_class)(cfg)
    return model
