"""What ViT, CLIP and SigLIP have in common: patches, and preprocessor_config.json. Imports no torch."""

from __future__ import annotations

from typing import Any

from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped, both

PREPROCESSOR = "preprocessor_config"
"""Key under which the content of preprocessor_config.json stands beside that of config.json."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_BICUBIC = 3  # as Pillow numbers its filters
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def pixels_from(fields: Fields, mean: list[float], std: list[float]) -> tuple[list[float], list[float]]:
    """Return what is subtracted from pixels and what they are divided by; without a preprocessor_config.json
    the given defaults.
    """
    inner = fields.inner(PREPROCESSOR)
    inner.must_be("do_normalize", True)
    inner.must_be("do_rescale", True)
    if abs(inner.number("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise inner.error("rescale_factor", "not supported: only 1/255 is")
    return inner.listed("image_mean") or list(mean), inner.listed("image_std") or list(std)


def preprocessor(kind: str, size: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Return the content of preprocessor_config.json. kind: the image processor's class.

    A picture becomes what evaluations show of it (data/pictures): its centre square, scaled by the bicubic
    filter, on white where it is transparent. All is said, for each class has other defaults.
    """
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def side(fields: Fields, key: str, default: int) -> int:
    """Return the height and width of a square, which may be given as two numbers."""
    value = fields.listed_or_number(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return int(value[0])
    return fields.integer(key, default)


def block(ours: str, theirs: str, names: dict[str, str], hidden: int, inner: int) -> list[Mapped]:
    """The layers of a block. names: their name → ours."""
    shapes = {"mlp.w1": (inner, hidden), "mlp.w2": (hidden, inner)}
    found: list[Mapped] = []
    for their, our in names.items():
        shape = (hidden,) if our.endswith("norm") else shapes.get(our, (hidden, hidden))
        found += both(f"{ours}.{our}", f"{theirs}.{their}", shape)
    return found
