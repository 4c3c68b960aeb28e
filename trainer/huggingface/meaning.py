"""The keys of a model's config that decide its shapes and its arithmetic. Imports no torch.

Two configs whose meanings are equal describe one model, however they are written: `head_dim: 0` is
hidden / heads, and a factor of rotary positions means nothing where they are not stretched.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.models.vision.config import VisionConfig

WITHOUT_MEANING = frozenset({"kind", "init_from", "init_std", "first_scale", "first_bias"})

_STRETCH = ("rope_low_frequency", "rope_high_frequency", "rope_original_positions")


def meaning(cfg: ModelConfig) -> dict[str, Any]:
    """Return dotted key → value, without keys that have no effect beside the others."""
    values: dict[str, Any] = {}
    for field in fields(cfg):  # type: ignore[arg-type]
        value = getattr(cfg, field.name)
        if field.name in ("text", "image") and isinstance(cfg, ImageTextConfig):
            values |= {f"{field.name}.{key}": inner for key, inner in vars(value).items()}
        elif field.name not in WITHOUT_MEANING:
            values[field.name] = value
    if isinstance(cfg, DecoderConfig):
        _decoder(cfg, values)
    elif isinstance(cfg, EncoderConfig):
        _encoder(cfg, values)
    elif isinstance(cfg, VisionConfig):
        _vision(cfg, values)
    elif isinstance(cfg, ImageTextConfig):
        values["text.ffn_hidden"] = cfg.text.ffn_width
        values["image.ffn_hidden"] = cfg.vision().ffn_width
    return values


def differing(ours: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Return key → (value in `ours`, value in `other`) of the keys that both have and that differ."""
    one, two = meaning(ours), meaning(other)
    return {key: (one[key], two[key]) for key in one if key in two and one[key] != two[key]}


def _decoder(cfg: DecoderConfig, values: dict[str, Any]) -> None:
    values |= {"head_dim": cfg.head_width, "kv_heads": cfg.key_value_heads, "ffn_hidden": cfg.ffn_width}
    unused: set[str] = set()
    if cfg.positions == "rope":
        unused.add("max_positions")
    else:
        unused |= {"rope_theta", "rope_scaling", "rope_factor", *_STRETCH}
    if cfg.rope_scaling == "none":
        unused.add("rope_factor")
    if cfg.rope_scaling != "llama3":
        unused.update(_STRETCH)
    if cfg.window and cfg.global_every >= cfg.layers > 0:
        values["global_every"] = cfg.layers  # block 0 alone
    for key in unused:
        values.pop(key, None)


def _encoder(cfg: EncoderConfig, values: dict[str, Any]) -> None:
    values["ffn_hidden"] = cfg.ffn_width
    unused: set[str] = set()
    windows = {cfg.window_of(layer) for layer in range(cfg.layers)}
    if cfg.positions == "rope":
        unused.add("max_positions")
    if cfg.positions == "learned" or 0 not in windows:
        unused.add("rope_theta")
    if cfg.positions == "learned" or windows == {0}:
        unused.add("rope_theta_local")
    if windows == {0}:
        unused |= {"window", "global_every"}
    elif cfg.global_every >= cfg.layers:
        values["global_every"] = cfg.layers
    for key in unused:
        values.pop(key, None)


def _vision(cfg: VisionConfig, values: dict[str, Any]) -> None:
    values["ffn_hidden"] = cfg.ffn_width
    if cfg.head != "classes":
        values.pop("classes")
    if cfg.head != "embedding":
        values.pop("embedding")
        values.pop("embedding_hidden")
    if cfg.head == "pixels":
        values.pop("pool")
