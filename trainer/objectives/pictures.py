"""Pictures of a batch → a model's input."""

from __future__ import annotations

import torch
from torch import Tensor

from common.objective import ModelInputs
from trainer.models.pictures import Pictures


def picture_inputs(image: Tensor, how: Pictures) -> ModelInputs:
    """Return the model's input of a batch's pictures, uint8 [rows, views, height, width, 3].

    With patches, the kwarg `positions` [rows, views · positions] numbers each view's from 0.
    """
    pixels = normalised(image, how)
    if not how.patch:
        return ModelInputs(pixels, {})
    patches = patches_of(pixels, how.patch)
    before = patches.new_zeros(*patches.shape[:2], how.prefix, patches.shape[-1])
    x = torch.cat((before, patches), dim=2) if how.prefix else patches
    positions = torch.arange(how.positions, device=image.device).expand(*x.shape[:2], -1)
    return ModelInputs(x.flatten(1, 2), {"positions": positions.flatten(1)}, {"positions": 1})


def normalised(image: Tensor, how: Pictures) -> Tensor:
    """Return (value / 255 - mean) / std of each pixel, float32 of the same shape."""
    assert image.shape[2:] == (how.size, how.size, 3), f"pictures {tuple(image.shape[2:])}, wanted {how.size}"
    mean, std = torch.tensor((how.mean, how.std), device=image.device)
    return image.to(torch.float32).div_(255.0).sub_(mean).div_(std)


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """Cut pictures [rows, views, height, width, 3] → [rows, views, patches, 3 · patch²], in the order of
    `Pictures.patch`.
    """
    split = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    rows, views, down, high, across, wide, channels = range(7)
    ordered = split.permute(rows, views, down, across, channels, high, wide)
    return ordered.flatten(4, 6).flatten(2, 3)
