"""Masked image modelling: the pixels of hidden patches are predicted from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from common.objective import ModelInputs
from trainer.models.pictures import pictures_of
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.draws import Draw, numbers
from trainer.objectives.picture_config import MaskedImagesConfig
from trainer.objectives.pictures import picture_inputs

SMOOTH = 0.01
"""Below this difference of pixel values, "l1" is a square. One of 256 levels is 0.008, for a std of 0.5."""


class MaskedImages:
    """SimMIM (Xie et al. 2021, arXiv:2111.09886): a learnt vector stands in the place of hidden patches, the
    model sees all positions, and a linear layer gives the hidden patches' pixels.

    Squares of `mask_patch` pixels are hidden together, equally many in each picture, drawn by the sequence
    number. A row's loss is the mean over the values of its hidden patches; its count is 1.
    """

    def __init__(self, cfg: MaskedImagesConfig, context: ObjectiveContext) -> None:
        pictures = pictures_of(context.model)
        assert pictures is not None
        self._cfg, self._pictures = cfg, pictures
        self._draw = Draw(context.seed, "masked_images.places")

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the pictures, and as kwargs `places` [rows, K], the hidden patches in ascending order (-1 in a
        row without a picture), and `targets` [rows, K · values], their values.
        """
        how, image = self._pictures, tensors["image"]
        fed = picture_inputs(image, how)
        real = numbers(sequences, image.device)
        there = real >= 0
        if "length" in tensors:  # 0 where the picture is damaged
            there = there & (tensors["length"] > 0)
        hidden = self._hidden(real)
        patches = fed.x[:, how.prefix :]
        targets = patches.gather(1, hidden[..., None].expand(-1, -1, patches.shape[-1]))
        if self._cfg.normalise_patches:
            targets = (targets - targets.mean(-1, keepdim=True)) / (
                targets.var(-1, keepdim=True) + 1e-6
            ).sqrt()
        places = torch.where(there[:, None], hidden + how.prefix, -1)
        kwargs = fed.kwargs | {"places": places, "targets": targets.flatten(1)}
        return replace(fed, kwargs=kwargs, places=frozenset({"places"}))

    def features(self, inputs: ModelInputs) -> int:
        """Implements `common.objective.TakesFeatures`: the predicted values."""
        return inputs.kwargs["targets"].shape[1]

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's mean absolute, or squared, difference from the targets. Under context parallelism
        the rank with a row's first place counts the row.
        """
        places, targets = inputs.kwargs["places"], inputs.kwargs["targets"]
        off = output - targets
        off = off.square() if self._cfg.distance == "l2" else absolute(off)
        by_place = off.unflatten(1, (places.shape[1], -1)).mean(dim=2)
        losses = (by_place * (places >= 0)).sum(dim=1) / places.shape[1]
        return losses, (places[:, 0] >= 0).to(torch.float32)

    def _hidden(self, sequences: Tensor) -> Tensor:
        """Return the numbers of each picture's hidden patches, ascending, int64 [rows, K]."""
        how = self._pictures
        side = how.size // self._cfg.square(how)
        chosen = self._draw.ranks(sequences, side * side) < self._cfg.squares(how)
        fine = self._cfg.square(how) // how.patch
        mask = chosen.unflatten(1, (side, side)).repeat_interleave(fine, 1).repeat_interleave(fine, 2)
        count = self._cfg.squares(how) * fine * fine
        # The chosen first, in their order: a stable sort, whose size is known without waiting for the device.
        return mask.flatten(1).logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, :count]


def absolute(off: Tensor) -> Tensor:
    """Return |off|, but off² / (2 · SMOOTH) + SMOOTH / 2 below SMOOTH.

    The gradient of |off| jumps from -1 to 1 at 0: a rounding, in which two layouts differ, would turn it
    around. Here the two parts have the same value and slope where they meet (Huber 1964, "Robust estimation
    of a location parameter").
    """
    size = off.abs()
    return torch.where(size < SMOOTH, size.square() / (2 * SMOOTH) + SMOOTH / 2, size)
