"""AdamW over the flat tensors that DeepSpeed makes of parameters: the torch engine's kernel, so that the loss
curve is the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallel.engine import LocalParameter, OptimizerFactory
from parallel.fused_adamw import fused_adamw

STATES = ("exp_avg", "exp_avg_sq")
_SETTINGS = ("betas", "eps", "weight_decay")


class FlatAdamW(torch.optim.Optimizer):
    """Decoupled AdamW, fused, in float32, whatever DeepSpeed puts into `param_groups`.

    The factory's own optimiser cannot be used: DeepSpeed flattens each group into one tensor, cuts it over
    the ranks, puts tensors into the groups that the optimiser has never seen, and calls `step` once a group,
    so an optimiser that allocates and counts by itself goes wrong. DeepSpeedCPUAdam, which Accelerate would
    use where the state is offloaded, is not used either: it is compiled at the first start and rounds
    differently, and torch's fused kernel is vectorised on a CPU as well.

    steps: updates done, set by the engine.
    divisor: returns the number that gradients are divided by; if it returns None, or is itself None, `step`
        does nothing: some of DeepSpeed's optimisers take a first step with zero gradients to allocate state,
        which would decay the weights.
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


def from_factory(
    factory: OptimizerFactory, parameters: dict[str, tuple[nn.Parameter, tuple[int, ...]]]
) -> FlatAdamW:
    """Return a FlatAdamW with the parameter groups that the factory makes.

    parameters: name → (parameter, global shape).

    The factory gets tensors on the meta device, where its state costs nothing. Muon is not possible: it needs
    whole matrices, and DeepSpeed's are flat.
    """
    on_meta = [
        LocalParameter(
            name=name,
            tensor=torch.empty(shape, device="meta"),
            shape=shape,
            offset=(0,) * len(shape),
            placement=shape,
            map_whole=_no_whole_matrices,
        )
        for name, (_, shape) in parameters.items()
    ]
    name_of = {id(one.tensor): one.name for one in on_meta}
    groups: list[dict[str, Any]] = []
    for group in factory(on_meta).param_groups:
        assert group.get("kind", "adamw") == "adamw"
        members = [parameters[name_of[id(tensor)]][0] for tensor in group["params"]]
        groups.append({"params": members, **{key: group[key] for key in _SETTINGS}})
    return FlatAdamW(groups)


def _no_whole_matrices(parts: Any, function: Any) -> Any:
    raise AssertionError("Muon is refused with the DeepSpeed engine")
