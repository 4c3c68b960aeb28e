"""Gradients as an update reads them."""

import torch
from torch import Tensor


def gradient_of(tensor: Tensor) -> Tensor:
    """Return the tensor's gradient; zeros where it has none."""
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
