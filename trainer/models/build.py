"""Config → model. A registry is a dictionary."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder

MODELS: dict[str, Callable[[DecoderConfig], nn.Module]] = {"decoder": Decoder}


def build_model(cfg: DecoderConfig) -> nn.Module:
    """A model with torch's default weights, on the current default device (`with torch.device("meta"):`)."""
    if cfg.kind not in MODELS:
        raise ValueError(f"model.kind: {cfg.kind!r} is not one of {', '.join(sorted(MODELS))}")
    return MODELS[cfg.kind](cfg)
