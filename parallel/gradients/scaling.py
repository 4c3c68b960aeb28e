"""Law 3's arithmetic, the same in every engine: the factor on a loss, the divisor of a summed gradient.

And dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Normalisation:
    """From summed losses to the clipped gradient of their mean, with one division by the global count.

    A backward runs on loss × `loss_factor` = loss × loss scale / nominal. Nominal is a power of two near the
    count, so that gradients have a mean's magnitude and the factor costs no accuracy. A summed gradient ×
    `to_mean` is the gradient of the mean loss; × `clipped` it is clipped too.

    precision: fp16 has a loss scale.
    nominal_count: about how many targets a global batch counts.
    clip: the largest norm of the mean's gradient; 0: no clipping.
    """

    def __init__(self, *, precision: str, nominal_count: float, clip: float) -> None:
        self._nominal = 2.0 ** round(math.log2(nominal_count))
        self._clip = clip
        self._scale = LossScale() if precision == "fp16" else None

    @property
    def loss_scale(self) -> float:
        """fp16's factor against underflow; 1 in other precisions."""
        return self._scale.value if self._scale else 1.0

    @property
    def loss_factor(self) -> float:
        return self.loss_scale / self._nominal

    def to_mean(self, count: float) -> float:
        """0 where no target of the global batch is counted: there is no mean, and its gradient is zero."""
        return self._nominal / (count * self.loss_scale) if count else 0.0

    def clipped(self, to_mean: float, grad_norm: float) -> float:
        """`to_mean`, reduced where the norm of the mean loss's gradient is above `clip`."""
        clips = self._clip > 0 and grad_norm > self._clip
        return to_mean * self._clip / grad_norm if clips else to_mean

    def update(self, *, overflow: bool) -> bool:
        """Adapt the loss scale. Return whether the step overflowed for another reason than the loss scale."""
        if self._scale is None:
            return overflow
        beyond = overflow and self._scale.value == 1.0
        self._scale.update(overflow)
        return beyond

    def state(self) -> dict[str, Any]:
        return self._scale.state() if self._scale else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Set a saved loss scale, where one was saved and this precision has one."""
        if self._scale and "loss_scale" in state:
            self._scale.restore(state)


@dataclass
class LossScale:
    """Halved at an overflow, doubled after `interval` good steps. Powers of two, so scaling is exact."""

    value: float = 2.0**16
    interval: int = 2000
    good_steps: int = 0

    def update(self, overflow: bool) -> None:
        if overflow:
            self.value, self.good_steps = max(self.value / 2, 1.0), 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value, self.good_steps = min(self.value * 2, 2.0**24), 0

    def state(self) -> dict[str, Any]:
        return {"loss_scale": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.value, self.good_steps = float(state["loss_scale"]), int(state["good_steps"])


def squares(grads: Sequence[Tensor]) -> Tensor:
    """Σ gradient² over `grads`, float64.

    A CPU adds up a tensor's squares one after another in float32: with 25 M values of uneven size the sum was
    4e-4 off, and by another amount for every way to shard the tensor. Rows are short enough; their sums are
    added in float64. A GPU adds in a tree.
    """
    if grads[0].device.type == "cpu":
        norms = torch.cat([torch.linalg.vector_norm(grad, dim=-1).flatten() for grad in grads])
    else:
        norms = torch.stack(torch._foreach_norm(list(grads)))
    return norms.double().square_().sum()
