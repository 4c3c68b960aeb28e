"""Muon for hidden matrices: momentum made semi-orthogonal.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the
nearest semi-orthogonal matrix, found by five Newton-Schulz iterations. Its size is matched to AdamW's as
0.2·sqrt(max(rows, columns)) (Liu et al., arXiv:2502.16982), so both share one learning rate.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parallel.engine import LocalParameter
from trainer.optim.gradients import gradient_of
from trainer.optim.rounding import Kernel, Rounding


class Muon:
    """The update of one group; see `optimizer.Update`.

    group: an `optimizer.ParameterGroup`; its "lr" is read at every step.
    state: parameter tensor → its momentum by name.
    kernel: what rounds bf16 momentum; None: the momentum is float32.
    """

    STATE = ("momentum_buffer",)

    def __init__(
        self, group: dict[str, Any], state: Mapping[Tensor, dict[str, Tensor]], kernel: Kernel | None
    ) -> None:
        self._group, self._state, self._kernel = group, state, kernel

    def __call__(self, steps: int, divisor: Tensor | None) -> None:
        lr, decay = self._group["lr"], self._group["weight_decay"]
        placements: dict[Any, list[LocalParameter]] = {}
        for member in self._group["members"]:
            placements.setdefault(member.placement, []).append(member)
        for members in placements.values():
            directions = (self._direction(member, steps, divisor) for member in members)
            for member, update in zip(members, members[0].map_whole(directions, orthogonalize)):
                size = lr * 0.2 * max(member.shape) ** 0.5
                member.tensor.mul_(1.0 - lr * decay).add_(update, alpha=-size)

    def recount(self) -> None:
        pass  # only the rounding depends on the step, which every call is told

    def _direction(self, member: LocalParameter, steps: int, divisor: Tensor | None) -> Tensor:
        """Add the gradient to the momentum, and return Nesterov's mean of the two."""
        momentum = self._group["momentum"]
        grad = gradient_of(member.tensor)
        if divisor is not None:
            grad = grad / divisor
        buffer = self._state[member.tensor]["momentum_buffer"]
        if self._kernel is None:
            return grad.lerp(buffer.lerp_(grad, 1.0 - momentum), momentum)
        exact = buffer.float().lerp_(grad, 1.0 - momentum)
        buffer.copy_(Rounding.of(member, "momentum_buffer", steps)(exact, kernel=self._kernel))
        return grad.lerp(exact, momentum)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrix: singular values end between about 0.7 and 1.2.

    Newton-Schulz with the quintic coefficients of Jordan et al. (2024); [rows, columns] in and out. Computed
    in bfloat16 on CUDA, where the iteration is known to tolerate it, else in float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
