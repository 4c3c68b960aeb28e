"""8-bit matrix products inside blocks, by torchao (the extra `fp8`).

Weights stay float32 masters and bfloat16 copies. Both operands of a product are scaled and cast right before
it, in forward and in backward (Micikevicius et al. 2022, arXiv:2209.05433). The casts are kernels of their
own unless the block is compiled. Embedding, norms, attention and head stay in bfloat16. FSDP's all-gather in
8 bits is not offered: it makes weights a tensor subclass without memory of its own, and the optimiser and the
checkpoint need that memory.
"""

import importlib.util
from typing import Any

import torch
from torch import nn

_MULTIPLE = 16  # the tensor cores' step in every dimension of a product
# recipe → compute capability that has kernels for it. Rows need Hopper's.
_NEEDS = {"tensorwise": (8, 9), "rowwise": (9, 0)}


def check(recipe: str, device: torch.device, *, positions: int) -> None:
    """ValueError, one line with the remedy, where `train.fp8` is not possible.

    positions: of a micro-batch on one rank, which are the rows of a layer's input.
    """
    if recipe == "none":
        return
    if positions % _MULTIPLE:
        raise ValueError(
            f"train.fp8={recipe}: a micro-batch has {positions} positions a rank, which must be a multiple "
            f"of {_MULTIPLE}: change train.micro_batch or data.seq_len"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f"train.fp8={recipe} needs torchao: pip install 'germinal[fp8]'")
    if device.type != "cuda":
        raise ValueError(
            f"train.fp8={recipe}: a {device.type} has no fp8 matrix products: set train.fp8=none"
        )
    have, need = torch.cuda.get_device_capability(device), _NEEDS[recipe]
    if have < need:
        raise ValueError(
            f"train.fp8={recipe} needs compute capability {need[0]}.{need[1]}, "
            f"{torch.cuda.get_device_name(device)} has {have[0]}.{have[1]}: set train.fp8=none"
        )


def convert(blocks: nn.Module, recipe: str, *, tp: int = 1, **options: Any) -> None:
    """Let every linear layer in `blocks` compute in fp8. Names and parameters stay the same.

    To be called before tensor parallelism puts hooks on the layers.

    tp: into how many parts the layers will be cut; scales are then those of a rank's part.
    options: fields of torchao's Float8LinearConfig.
    """
    if recipe == "none":
        return
    import dataclasses

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            _check_layer(name, module, tp)
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), **options)
    convert_to_float8_training(blocks, config=config)


def _check_layer(name: str, module: nn.Linear, tp: int) -> None:
    if tp > 1 and module.bias is not None:
        raise ValueError(
            f"train.fp8: layer {name} has a bias, which is not in fp8 over parallel.tp={tp}: set tp=1, or "
            "train.fp8=none"
        )
    for size in (module.in_features, module.out_features):
        if size % (_MULTIPLE * tp):
            over = f" over tp={tp}" if tp > 1 else ""
            raise ValueError(
                f"train.fp8: layer {name} is {module.in_features} × {module.out_features}{over}: sizes must "
                f"be multiples of {_MULTIPLE}; change the model's, or set train.fp8=none"
            )
