"""The optimiser over one rank's local tensors: groups of parameters, each with its own update.

An engine hands over `LocalParameter`s: plain local tensors, not DTensors, so an element-wise update costs no
dispatch and is the same on every layout. Gradients arrive as sums; the update divides them by `grad_scale`,
which is law 3's single division and the clipping at once.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.optim.adamw import AdamW
from trainer.optim.muon import Muon
from trainer.optim.rounding import Kernel, rounded

ParameterGroup = dict[str, Any]
"""One group, a dictionary as in torch's optimisers:

params: the local tensors. members: their `LocalParameter`s, in the same order.
kind: "adamw" or "muon".
lr: the run's learning rate, which the engine sets before each step. lr_ratio: what AdamW multiplies it by.
weight_decay, betas, eps, momentum: the update's settings.
"""


class Update(Protocol):
    """How the parameters of one group are updated."""

    def __call__(self, steps: int, divisor: Tensor | None) -> None:
        """Update every parameter of the group. steps: updates done before; divisor: of the gradients."""

    def recount(self) -> None:
        """The next call's `steps` is not one more than the last call's."""


class Optimizer:
    """AdamW for the groups of kind "adamw", Muon for those of kind "muon".

    param_groups: see `ParameterGroup`.
    state: parameter tensor → state by name, each of the parameter's local shape, from the start. The names
        are those of torch.optim: `exp_avg` and `exp_avg_sq` for AdamW, `momentum_buffer` for Muon.
    grad_scale: gradients are divided by this number.
    steps: updates done, the only scalar state: AdamW's bias correction depends on it.

    State in bfloat16 is updated in float32 and rounded stochastically; see `rounding` for why.

    A `parallel.engine.LocalOptimizer`, but no torch.optim.Optimizer: making one of those imports
    torch._dynamo, which takes a second at every start, and nothing of it was used.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        state_dtype: torch.dtype = torch.float32,
        compiler: str | None = None,
    ) -> None:
        self.param_groups = list(groups)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.grad_scale: Tensor | None = None
        self._steps = 0
        self._updates: list[Update] = []
        exact = state_dtype == torch.float32
        # Eager it is some thirty passes over memory a moment, on a GPU ten times the update itself. Slices
        # have many shapes, and one graph a number of dimensions serves them all.
        kernel: Kernel = rounded
        if compiler and not exact:
            kernel = torch.compile(rounded, backend=compiler, dynamic=True)
        for group in self.param_groups:
            kind = Muon if group["kind"] == "muon" else AdamW
            for tensor in group["params"]:
                self.state[tensor] = {
                    name: torch.zeros_like(tensor, dtype=state_dtype) for name in kind.STATE
                }
            self._updates.append(kind(group, self.state, None if exact else kernel))

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter once, from its summed gradient divided by `grad_scale`."""
        for update in self._updates:
            update(self._steps, self.grad_scale)
        self._steps += 1

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        for update in self._updates:
            update.recount()
