"""A checkpoint's weights → a whole model on one device, whatever layout wrote the checkpoint."""

from pathlib import Path

import torch
from torch import Tensor, nn

from parallel.engine import Chunk
from parallel.parameters.initialize import to_device
from trainer.checkpoint.store import load
from trainer.models.build import build_model
from trainer.models.config import ModelConfig


def load_model(cfg: ModelConfig, folder: Path, device: str = "") -> nn.Module:
    """Build the model that `cfg` describes, with the weights of a checkpoint in float32, ready to evaluate.

    Args:
        cfg: the model's config.
        folder: the checkpoint, which is verified (`trainer.checkpoint.folder.verify`).
        device: where the model goes; default: the GPU, if there is one, else the CPU.

    Raises RuntimeError where a tensor is missing or has another shape.
    """
    with torch.device("meta"):
        model = build_model(cfg)
    to_device(model, torch.device("cpu"))
    # A tied weight is stored once.
    canonical_names = {alias: canonical for canonical, alias in cfg.plan().tied}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in canonical_names}
    load(folder, [_whole(f"model.{name}", tensor) for name, tensor in state.items()])
    for alias, canonical in canonical_names.items():
        model.get_parameter(alias).data = model.get_parameter(canonical).data
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _whole(name: str, tensor: Tensor) -> Chunk:
    """A tensor as one chunk, for the engine's way of reading a checkpoint."""
    return Chunk(name, tensor, tuple(tensor.shape), (0,) * tensor.ndim, owned=False)
