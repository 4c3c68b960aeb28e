"""Activation checkpointing and compilation, block by block. Neither changes a parameter's name."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# What is dear to compute and cheap to keep: matrix products and attention.
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def parse(recompute: str) -> Callable[[int], str]:
    """`parallel.recompute` → what block number n does: none, full or selective. ValueError if unknown."""
    if recompute in ("none", "full", "selective"):
        return lambda block: recompute
    kind, _, text = recompute.partition(":")
    if kind == "every" and text.isdecimal() and int(text) > 0:
        return lambda block: "full" if block % int(text) == 0 else "none"
    raise ValueError(f"parallel.recompute={recompute}: choose none, full, selective, or every:N")


def apply_recompute(blocks: nn.ModuleDict, recompute: str) -> None:
    """Keep only a block's input (full), or that and its matrix products (selective), for backward."""
    choose = parse(recompute)
    for key, block in blocks.items():
        kind = choose(int(key))
        if kind == "none":
            continue
        extra: dict[str, Any] = {}
        if kind == "selective":
            extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **extra
        )


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def apply_compile(blocks: nn.ModuleDict) -> None:
    """Compile each block's forward: one graph serves all blocks, as they differ only in their weights."""
    for block in blocks.values():
        block.forward = torch.compile(block.forward)
