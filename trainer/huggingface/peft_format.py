"""LoRA's matrices as PEFT keeps them: adapter_config.json, and names and shapes of the tensors. Imports no
torch.

PEFT's matrices lie beside its base's layers. Where such a layer is several of ours, as GPT-2's queries, keys
and values are, an export puts our branches into one of their common rank, with zeros where one has no part in
another's rows; and an import gives each of ours the common A, and its rows of B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.huggingface.fields import Fields
from trainer.huggingface.folder import read_json
from trainer.huggingface.mapping import Mapped
from trainer.models.tuned.plan import LORA

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the names of the base's modules, in PEFT's file."""

_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "lora_dropout"),
    *("peft_type", "peft_version", "revision", "target_modules", "task_type", "exclude_modules", "r"),
    *("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "modules_to_save", "megatron_core"),
    *("layers_to_transform", "layers_pattern", "qalora_group_size", "ensure_weight_tying", "eva_config"),
)
_NEUTRAL_START = (True, False, None, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` of a base that PEFT has left as it was: others, such as pissa, change it."""


@dataclass(frozen=True)
class Branch:
    """A linear layer of ours inside one of theirs.

    ours: our layer, such as `layers.0.attention.wq`.
    theirs: their layer, such as `model.layers.0.self_attn.q_proj`.
    inner, outer: widths of our layer's input and result.
    first: the first of our rows in their result.
    whole: rows of their result.
    transposed: their layer keeps its matrix as [in, out].
    """

    ours: str
    theirs: str
    inner: int
    outer: int
    first: int
    whole: int
    transposed: bool

    @property
    def a(self) -> str:
        """Name of our A."""
        return f"{self.ours}.{LORA}.a.weight"

    @property
    def b(self) -> str:
        """Name of our B."""
        return f"{self.ours}.{LORA}.b.weight"

    @property
    def their_a(self) -> str:
        return f"{PREFIX}{self.theirs}.lora_A.weight"

    @property
    def their_b(self) -> str:
        return f"{PREFIX}{self.theirs}.lora_B.weight"


@dataclass(frozen=True)
class Settings:
    """What an adapter_config.json says.

    rank, alpha: of modules that no pattern names.
    ranks, alphas: patterns of modules' names → theirs.
    by_root: the branch is multiplied by alpha / √rank, not by alpha / rank.
    saved: modules that are kept whole in the adapter.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    by_root: bool
    saved: tuple[str, ...]

    def scale(self, module: str, rank: int) -> float:
        """Return what the branch of a module is multiplied by."""
        alpha = next((a for pattern, a in self.alphas.items() if _is_meant(pattern, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def is_adapter(path: Path) -> bool:
    """Whether `path` is a folder of PEFT's."""
    return (path / CONFIG).is_file()


def branches(mapped: Iterable[Mapped]) -> list[Branch]:
    """Return every linear layer of ours that is a layer of theirs, or rows of one."""
    found = []
    for one in mapped:
        layer, _, kind = one.ours.rpartition(".")
        if kind != "weight" or len(one.shape) != 2 or len(one.whole) != 2:
            continue
        whole = one.whole[1] if one.transposed else one.whole[0]
        theirs = one.theirs.removesuffix(".weight")
        found.append(Branch(layer, theirs, one.shape[1], one.shape[0], one.first, whole, one.transposed))
    return found


def read_settings(path: Path) -> Settings:
    """Read adapter_config.json. ValueError, one line, where it is none, or describes another arithmetic than
    LoRA's.
    """
    file = path / CONFIG
    values = read_json(file)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{file}: peft_type={kind!r}: only LORA is read")
    for key, value in values.items():
        if key == "init_lora_weights":
            wrong = not isinstance(value, str | bool | None) or value not in _NEUTRAL_START
        elif key == "bias":
            wrong = value != "none"
        else:
            wrong = bool(value) and key not in _HARMLESS
        if wrong:
            raise ValueError(f"{file}: {key}={value!r} is not supported: train the adapter without it")
    fields = Fields(values, str(file))
    for key in ("r", "lora_alpha"):
        if fields.is_null(key):
            raise fields.error(key, "not a number")
    saved = fields.listed("modules_to_save") or []
    if not all(isinstance(name, str) for name in saved):
        raise fields.error("modules_to_save", "not a list of names")
    return Settings(
        rank=fields.integer("r", 8),
        alpha=fields.number("lora_alpha", 8),
        ranks={pattern: inner.integer(pattern) for pattern, inner in _patterns(fields, "rank_pattern")},
        alphas={pattern: inner.number(pattern) for pattern, inner in _patterns(fields, "alpha_pattern")},
        by_root=fields.flag("use_rslora", False),
        saved=tuple(saved),
    )


def _patterns(fields: Fields, key: str) -> Iterator[tuple[str, Fields]]:
    """Yield each pattern of modules' names under a key, and the mapping that has its value."""
    inner = fields.inner(key)
    for pattern in inner.keys():  # noqa: SIM118 (no mapping)
        try:
            re.compile(pattern)
        except re.error as error:
            raise fields.error(key, f"{pattern!r} is no regular expression: {error}") from None
        yield pattern, inner


def why_unknown(name: str) -> str:
    """Say what a tensor of PEFT's file is that belongs to no branch or layer of ours."""
    module = re.split(r"\.(?:base_layer|lora_[A-Za-z_]+)(?:\.|$)", name.removeprefix(PREFIX))[0]
    if ".base_layer." in name or ".lora_embedding_" in name:
        return not_in_a_block(module)
    return f"{name} lies beside no layer of this model: an adapter for another base?"


def not_in_a_block(module: str) -> str:
    """Say why a branch beside their module is not read."""
    return (
        f"LoRA beside {module} is not supported: only linear layers in blocks have branches: train the "
        "adapter without it (target_modules, exclude_modules)"
    )


def settings_for(
    layers: Mapping[str, Sequence[Branch]], *, rank: int, alpha: float, base: str, saved: Sequence[str]
) -> dict[str, Any]:
    """Return the adapter_config.json of branches of one rank.

    layers: their layer → our branches in it.
    rank, alpha: of our branches.
    base: what PEFT is to load as the base; may be empty.
    saved: modules of the base that the adapter holds whole.
    """
    targets = {_behind_number(theirs): len(inside) for theirs, inside in layers.items()}
    joined = {target: count for target, count in targets.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "rank_pattern": {target: count * rank for target, count in joined.items()},
        "alpha_pattern": {target: count * alpha for target, count in joined.items()},
        "fan_in_fan_out": any(one.transposed for inside in layers.values() for one in inside),
        "modules_to_save": sorted(saved) or None,
        "inference_mode": True,
    }


def _behind_number(module: str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    return re.sub(r"^.*\.\d+\.", "", module)


def _is_meant(pattern: str, module: str) -> bool:
    """Whether PEFT takes a pattern for a module's: as a regular expression of the end of its name."""
    return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
