"""Sizes that follow from a config, and checks of sizes, that several models share. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GATED = ("swiglu", "geglu", "geglu_tanh")
"""Activations of a feed-forward layer with three matrices, not two."""


def ffn_width(given: int, hidden: int, *, gated: bool) -> int:
    """Return the width of a feed-forward layer: `given`; where that is 0, 8/3 · hidden rounded up to a
    multiple of 64 for a gated layer, else 4 · hidden.
    """
    return given or (-(-8 * hidden // (3 * 64)) * 64 if gated else 4 * hidden)


def check_positions(seq_len: int, most: int, key: str = "max_positions") -> None:
    """Raise a ValueError where rows of `seq_len` tokens have more positions than the model has learned."""
    if seq_len > most:
        raise ValueError(
            f"data.seq_len={seq_len} is more than model.{key}={most}: raise that, or lower data.seq_len"
        )


def check_split(sizes: Mapping[str, int], *, tp: int) -> None:
    """Raise a ValueError with the first size, by its key in `model:`, that does not divide by `tp`."""
    for key, size in sizes.items():
        if size % tp:
            raise ValueError(f"model.{key}={size} is not divisible by parallel.tp={tp}")


def check_heads(heads: Mapping[str, int], *, tp: int, cp: int) -> None:
    """Raise a ValueError with the first number of heads that tensor and context parallelism do not divide."""
    for key, size in heads.items():
        if size % (tp * cp):
            raise ValueError(f"model.{key}={size} is not divisible by parallel.tp={tp} · parallel.cp={cp}")


def sizes_to_lower(cfg: Any) -> tuple[str, str]:
    """Implements `ModelConfig.sizes_to_lower` for a model of one list of blocks: the vocabulary where its
    tables have most parameters, else the largest size.
    """
    parameters = cfg.parameters()
    tables = parameters.first + parameters.last
    if tables > cfg.layers * parameters.block and cfg.vocab > cfg.hidden:
        name = "vocab"
    else:
        name = max(("hidden", "layers", "ffn_hidden"), key=lambda name: getattr(cfg, name))
    return f"model.{name}={getattr(cfg, name)}", f"model.layers={cfg.layers}"
