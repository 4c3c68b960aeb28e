"""A vision transformer with random weights, and pictures for it."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.vision.config import VisionConfig
from trainer.models.vision.vision import Vision
from trainer.objectives.pictures import picture_inputs

SIZES: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "layers": 3,
    "hidden": 32,
    "heads": 4,
    "classes": 7,
}
CLASS: dict[str, Any] = {**SIZES, "class_token": True, "pool": "class"}


def drawn(**keys: Any) -> Vision:
    torch.manual_seed(0)
    model = Vision(VisionConfig(**keys))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # a norm or a bias that is missing would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.3)
    return model


def images(rows: int = 2, views: int = 1, size: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (rows, views, size, size, 3), generator=draw, dtype=torch.uint8)


def fed(model: Vision, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = picture_inputs(image, model.cfg.pictures())
    return inputs.x, inputs.kwargs
