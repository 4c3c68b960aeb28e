"""The plan of a model that is fine-tuned. Imports no torch.

LoRA's two matrices beside a linear layer, and how tensor parallelism cuts them:

    layer     A [rank, in]                            B [out, rank]
    column    whole: gradients are summed             cut by output features, as the layer
    row       cut by input features, as the layer     whole, of partial sums: gradients are summed

Bottleneck adapters stand where hidden states are cut by sequence: their matrices are whole on every rank, and
gradients are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from common.model_plan import Init, ModelPlan
from trainer.models.tuned.config import FinetuneConfig

LORA, ADAPTER = "lora", "adapter"
"""Names of the modules that are added, below the layer that they belong to."""

ALL = "all"
ADAPTER_STD = 1e-2  # Houlsby et al. 2019, section 2.1: near the identity


def tuned_plan(plan: ModelPlan, cfg: FinetuneConfig) -> ModelPlan:
    """Return the plan of a model with what `cfg` adds and freezes. ValueError, one line, where there is
    nothing to add it to, or nothing to train.
    """
    if cfg.method == "lora":
        return _with_lora(plan, cfg)
    if cfg.method == "adapters":
        return _with_adapters(plan)
    if cfg.method == "probe":
        if not plan.task:
            raise ValueError(
                "finetune.method=probe trains the layer of a task alone, and this model has none: take a "
                "model of classes, or another method"
            )
        return replace(plan, trained=plan.in_task)
    return plan


def is_added(name: str) -> bool:
    """Whether a parameter of that name is one that fine-tuning adds."""
    return not {LORA, ADAPTER}.isdisjoint(name.split("."))


def lora_layers(plan: ModelPlan, cfg: FinetuneConfig) -> list[tuple[str, str]]:
    """Return (pattern, style) of the linear layers in blocks that get a branch. ValueError where a target is
    none of them.
    """
    linear = [
        (pattern, style)
        for pattern, style in plan.tensor
        if style in ("column", "row") and plan.block_of(pattern)
    ]
    chosen = [one for one in linear if any(_meant(target, one[0]) for target in cfg.targets)]
    for target in cfg.targets:
        if not any(_meant(target, pattern) for pattern, _ in linear):
            known = ", ".join(dict.fromkeys(pattern.rpartition(".")[2] for pattern, _ in linear))
            raise ValueError(
                f"finetune.targets: {target!r} is no linear layer in a block of this model: "
                f"{f'known are {known}, or all' if known else 'it has none that LoRA knows'}"
            )
    return chosen


def adapter_layers(plan: ModelPlan) -> list[tuple[str, str]]:
    """Return (pattern of a module that an adapter stands behind, its last layer) of the modules in blocks
    whose result is added to the hidden states: attention and feed-forward layers.
    """
    rows = [pattern for pattern, style in plan.tensor if style == "row" and plan.block_of(pattern)]
    if not rows:
        raise ValueError(
            "finetune.method=adapters: this model's blocks have no attention and feed-forward layers to put "
            "adapters behind: take another method"
        )
    return [(module, last) for module, _, last in (row.rpartition(".") for row in rows)]


def _meant(target: str, pattern: str) -> bool:
    return target == ALL or f".{pattern}".endswith(f".{target}")


def _with_lora(plan: ModelPlan, cfg: FinetuneConfig) -> ModelPlan:
    def styles() -> Iterator[tuple[str, str]]:
        for pattern, style in lora_layers(plan, cfg):
            row = style == "row"
            yield f"{pattern}.{LORA}.a", "partial" if row else "sequence"
            yield f"{pattern}.{LORA}.b", "sequence" if row else "column"

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if not is_added(name):
            return plan.init(name, shape)
        # B is zero, so that the first step is the base's. A is uniform within ±1/√in, as PEFT draws it
        # (Kaiming's with a = √5): what was found there for rank, alpha and rate then holds here. A normal of
        # the same deviation would be as good.
        return Init("zeros") if name.endswith(".b.weight") else Init("uniform", 1 / math.sqrt(3 * shape[1]))

    return _extended(plan, tuple(styles()), init)


def _with_adapters(plan: ModelPlan) -> ModelPlan:
    def styles() -> Iterator[tuple[str, str]]:
        for pattern, _ in adapter_layers(plan):
            yield f"{pattern}.{ADAPTER}.down", "sequence"
            yield f"{pattern}.{ADAPTER}.up", "sequence"

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if not is_added(name):
            return plan.init(name, shape)
        # Nothing is added at first: the second matrix is zero, where the paper has small values in both.
        return Init("trunc_normal", ADAPTER_STD) if name.endswith(".down.weight") else Init("zeros")

    return _extended(plan, tuple(styles()), init)


def _extended(
    plan: ModelPlan,
    styles: tuple[tuple[str, str], ...],
    init: Callable[[str, tuple[int, ...]], Init],
) -> ModelPlan:
    return replace(
        plan,
        tensor=(*plan.tensor, *styles),
        init=init,
        trained=lambda name: is_added(name) or plan.in_task(name),
    )
