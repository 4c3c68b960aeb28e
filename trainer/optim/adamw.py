"""AdamW over local tensors (Loshchilov & Hutter, arXiv:1711.05101), with moments in float32 or bfloat16."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel.fused_adamw import fused_adamw
from trainer.optim.gradients import gradient_of
from trainer.optim.rounding import Kernel, Rounding

SLICE_ELEMENTS = 1 << 24
"""Elements whose bf16 moments exist in float32 at a time, while they are updated."""


class AdamW:
    """The update of one group; see `optimizer.Update`.

    group: an `optimizer.ParameterGroup`; its "lr" is read at every step.
    state: parameter tensor → its moments by name.
    kernel: what rounds bf16 moments; None: the moments are float32.
    """

    STATE = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, group: dict[str, Any], state: Mapping[Tensor, dict[str, Tensor]], kernel: Kernel | None
    ) -> None:
        self._group, self._state, self._kernel = group, state, kernel
        # The fused kernel counts on the device, in one tensor a parameter.
        self._device_steps: list[Tensor] = []

    def __call__(self, steps: int, divisor: Tensor | None) -> None:
        if self._kernel is None:
            self._update_whole(steps, divisor)
        else:
            self._update_slices(steps, divisor, self._kernel)

    def recount(self) -> None:
        self._device_steps.clear()

    def _update_whole(self, steps: int, divisor: Tensor | None) -> None:
        tensors = [tensor for tensor in self._group["params"] if tensor.numel()]
        if not tensors:
            return
        if not self._device_steps:
            self._device_steps = _filled(steps, tensors)
        states = [self._state[tensor] for tensor in tensors]
        fused_adamw(
            tensors,
            [gradient_of(tensor) for tensor in tensors],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            self._device_steps,
            lr=self._lr,
            settings=self._group,
            divisor=divisor,
        )

    def _update_slices(self, steps: int, divisor: Tensor | None, kernel: Kernel) -> None:
        """The same update, slice by slice along dim 0, with moments that are stored in bfloat16."""
        for member in self._group["members"]:
            tensor = member.tensor
            if not tensor.numel():
                continue
            roundings = [Rounding.of(member, name, steps) for name in self.STATE]
            rows = max(1, SLICE_ELEMENTS * len(tensor) // tensor.numel())
            for first in range(0, len(tensor), rows):
                part = slice(first, first + rows)
                stored = [self._state[tensor][name][part] for name in self.STATE]
                exact = [moment.float() for moment in stored]
                here = [tensor[part]]
                fused_adamw(
                    here,
                    [gradient_of(tensor)[part]],
                    exact[:1],
                    exact[1:],
                    _filled(steps, here),
                    lr=self._lr,
                    settings=self._group,
                    divisor=divisor,
                )
                for moment, rounding, value in zip(stored, roundings, exact):
                    moment.copy_(rounding(value, first, kernel))

    @property
    def _lr(self) -> float:
        return self._group["lr"] * self._group["lr_ratio"]


def _filled(steps: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.full((), float(steps), device=tensor.device) for tensor in tensors]
