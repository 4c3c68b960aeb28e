"""AdamW over the flat tensors that DeepSpeed makes of parameters: the torch engine's kernel, so the same curve."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from parallel.engine import LocalParameter

STATES = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("betas", "eps", "weight_decay")

Factory = Callable[[Sequence[LocalParameter]], torch.optim.Optimizer]


class FlatAdamW(torch.optim.Optimizer):
    """Decoupled AdamW, fused, in float32, whatever DeepSpeed puts into `param_groups`.

    The factory's own optimiser cannot be used: DeepSpeed flattens each group into one tensor, cuts it over the
    ranks, exchanges it under the optimiser's feet (also for tensors the optimiser has never seen) and calls
    `step` once a group, so an optimiser that allocates or counts by itself is wrong. DeepSpeedCPUAdam, which
    Accelerate would put in where the state is offloaded, is left out too: it is compiled at the first start,
    rounds differently, and counts its steps per group; torch's fused CPU kernel is vectorised as well.

    steps: updates done, set by the engine. divisor: gives the number that gradients are divided by; None makes
    `step` do nothing, since some of DeepSpeed's optimisers take a first step with zero gradients to allocate
    state, which would decay the weights and count.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        super().__init__(param_groups, {"lr": 0.0})
        self.steps = 0
        self.divisor: Callable[[], Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self.divisor is None:
            return
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None and tensor.numel()]
            if not tensors:
                continue
            for tensor in tensors:
                self.allocate(tensor)
            device = tensors[0].device
            beta1, beta2 = group["betas"]
            adamw(
                tensors,
                [tensor.grad for tensor in tensors],
                [self.state[tensor]["exp_avg"] for tensor in tensors],
                [self.state[tensor]["exp_avg_sq"] for tensor in tensors],
                [],
                [torch.full((), float(self.steps), device=device) for _ in tensors],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                grad_scale=self.divisor().to(device, torch.float32),
                found_inf=None,
            )

    def allocate(self, tensor: Tensor) -> None:
        """Give a tensor its moments, zero, if it has none."""
        for name in STATES:
            if name not in self.state[tensor]:
                self.state[tensor][name] = torch.zeros_like(tensor, requires_grad=False)


def from_factory(factory: Factory, parameters: dict[str, tuple[nn.Parameter, tuple[int, ...]]]) -> FlatAdamW:
    """FlatAdamW with the groups that the factory makes of parameters: name → (parameter, global shape).

    The factory is asked on the meta device, where its state costs nothing. ValueError for Muon, which looks at
    whole matrices where DeepSpeed has flat ones.
    """
    shadows = {
        name: LocalParameter(name, torch.empty(shape, device="meta"), shape, _whole, _whole)
        for name, (_, shape) in parameters.items()
    }
    name_of = {id(shadow.tensor): name for name, shadow in shadows.items()}
    groups: list[dict[str, Any]] = []
    for group in factory(list(shadows.values())).param_groups:
        if group.get("kind", "adamw") != "adamw":
            raise ValueError(
                f"optim.name={group['kind']} has no place in parallel.engine=deepspeed, which shards flat tensors: "
                "use optim.name=adamw, or parallel.engine=torch"
            )
        members = [parameters[name_of[id(tensor)]][0] for tensor in group["params"]]
        groups.append({"params": members, **{key: group[key] for key in _SETTINGS}})
    return FlatAdamW(groups)


def _whole(tensor: Tensor) -> Tensor:
    return tensor
