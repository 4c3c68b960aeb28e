"""The optimiser over one rank's local tensors: groups of parameters, each with its own update.

An engine hands over `LocalParameter`s: plain local tensors, not DTensors, so an element-wise update costs no
dispatch and is the same on every layout. Gradients arrive as sums; the update divides them by `grad_scale`,
which does the single division by the global count (law 3 in CONTRIBUTING.md) and the clipping at once.
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
        """Update every parameter of the group.

        steps: updates done before.
        divisor: gradients are divided by it; None: by nothing.
        """

    def recount(self) -> None:
        """To be called when `steps` was set from outside: forget what was counted along with it."""


class Optimizer:
    """AdamW for the groups of kind "adamw", Muon for those of kind "muon".

    param_groups: see `ParameterGroup`.
    state: parameter tensor → state by name, each of the parameter's local shape, from the start. The names
        are those of torch.optim: `exp_avg` and `exp_avg_sq` for AdamW, `momentum_buffer` for Muon.
    grad_scale: gradients are divided by this number.
    steps: updates done, the only scalar state: AdamW's bias correction depends on it.

    State in bfloat16 is updated in float32 and rounded stochastically; see `rounding` for why.

    Implements `parallel.engine.LocalOptimizer`. Not a torch.optim.Optimizer: making one imports
    torch._dynamo, a second at every start, and nothing of it is needed.
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
        # Uncompiled, rounding reads and writes each moment about thirty times; on a GPU that costs ten times
        # the update itself. Slices have many shapes; with dynamic=True one graph per number of dims serves
        # them all.
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
