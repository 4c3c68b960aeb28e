"""AdamW over the flat tensors that DeepSpeed makes of parameters: the torch engine's kernel and curve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.fused_adamw import fused_adamw

STATES = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("betas", "eps", "weight_decay")

Factory = Callable[[list[Any]], Any]
"""list[LocalParameter] → LocalOptimizer; see `engine`."""


@dataclass(frozen=True)
class _Shadow:
    """A `LocalParameter` without memory: only to ask which group it belongs to."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...] = ()


class FlatAdamW(torch.optim.Optimizer):
    """Decoupled AdamW, fused, in float32, whatever DeepSpeed puts into `param_groups`.

    The factory's own optimiser cannot be used: DeepSpeed flattens each group into one tensor, cuts it over
    the ranks, puts tensors into the groups that the optimiser has never seen, and calls `step` once a group,
    so an optimiser that allocates and counts by itself goes wrong. DeepSpeedCPUAdam, which Accelerate would
    put in where the state is offloaded, is left out too: it is compiled at the first start and rounds
    differently, and torch's fused kernel is vectorised on a CPU as well.

    steps: updates done, set by the engine. divisor: gives the number that gradients are divided by, None for
    no update. Without it `step` does nothing: some of DeepSpeed's optimisers take a first step with zero
    gradients to allocate state, which would decay the weights and count.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        super().__init__(param_groups, {"lr": 0.0})
        self.steps = 0
        self.divisor: Callable[[], Tensor | None] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        divisor = self.divisor() if self.divisor else None
        if divisor is None:
            return
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None and tensor.numel()]
            if not tensors:
                continue
            for tensor in tensors:
                self.allocate(tensor)
            device = tensors[0].device
            fused_adamw(
                tensors,
                [tensor.grad for tensor in tensors],
                [self.state[tensor]["exp_avg"] for tensor in tensors],
                [self.state[tensor]["exp_avg_sq"] for tensor in tensors],
                [torch.full((), float(self.steps), device=device) for _ in tensors],
                lr=group["lr"],
                settings=group,
                divisor=divisor.to(device, torch.float32),
            )

    def allocate(self, tensor: Tensor) -> None:
        """Give a tensor its moments, zero, if it has none."""
        for name in STATES:
            if name not in self.state[tensor]:
                self.state[tensor][name] = torch.zeros_like(tensor, requires_grad=False)


def from_factory(factory: Factory, parameters: dict[str, tuple[nn.Parameter, tuple[int, ...]]]) -> FlatAdamW:
    """FlatAdamW with the groups that the factory makes of parameters: name → (parameter, global shape).

    The factory is asked on the meta device, where its state costs nothing. Muon is not for it: that
    looks at whole matrices, where DeepSpeed has flat ones.
    """
    shadows = [
        _Shadow(name, torch.empty(shape, device="meta"), shape) for name, (_, shape) in parameters.items()
    ]
    name_of = {id(shadow.tensor): shadow.name for shadow in shadows}
    groups: list[dict[str, Any]] = []
    for group in factory(shadows).param_groups:
        assert group.get("kind", "adamw") == "adamw"
        members = [parameters[name_of[id(tensor)]][0] for tensor in group["params"]]
        groups.append({"params": members, **{key: group[key] for key in _SETTINGS}})
    return FlatAdamW(groups)
