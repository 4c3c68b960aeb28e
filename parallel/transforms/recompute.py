"""Activation checkpointing and compilation, block by block. Neither changes a parameter's name."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from common.module_interfaces import FusesKernels
from parallel.relied_on import borrow

_aten = torch.ops.aten
# Costly to compute and cheap to keep: matrix products and attention.
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_mm.default,
    borrow("torch", "torch._higher_order_ops", "flex_attention"),
}


def parse(recompute: str) -> Callable[[int], str]:
    """`parallel.recompute` → a function of a block's number that returns none, full or selective."""
    kind, _, text = recompute.partition(":")
    if kind == "every":
        return lambda block: "full" if block % int(text) == 0 else "none"
    return lambda block: recompute


def apply_recompute(blocks: nn.ModuleDict, recompute: str) -> None:
    """For backward, keep of a block only its input (full), or its input and the results of matrix products
    and attention (selective).
    """
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
    # Operators of symmetric memory are matrix product and message in one: see `async_tensor`.
    kept = operator in _KEPT or getattr(operator, "namespace", "") == "symm_mem"
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def compile_backend(wanted: bool, device: torch.device) -> str | None:
    """The torch.compile backend for `parallel.compile` on a device; None: eager."""
    return "inductor" if wanted and device.type != "cpu" else None


def apply_compile(model: nn.Module, blocks: Iterable[nn.Module], backend: str) -> None:
    """Compile each block's forward, recomputation included, and let the head fuse its passes over the logits.

    One graph serves all blocks that recompute alike, as they differ only in their weights. What FSDP does
    around a forward is in module hooks and stays outside. Shapes are compiled as they come: training has one,
    and a second, in evaluation, must not make training's dynamic.
    """
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False)
    for module in model.modules():
        if isinstance(module, FusesKernels):
            module.set_compiler(backend)
