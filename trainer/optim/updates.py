"""Optimisers over one rank's local tensors: fused AdamW, and Muon for hidden matrices beside it.

An engine hands over `LocalParameter`s: plain local tensors, not DTensors, so an element-wise update costs no
dispatch and does not know the layout. Gradients arrive as raw sums; `optimizer.grad_scale` (the fused
kernels' own argument) divides them inside the update, which is law 3's single division and the clipping at
once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.precision import torch_dtype
from parallel.engine import LocalParameter
from parallel.fused_adamw import fused_adamw
from trainer.config.sections import OptimConfig
from trainer.optim.rounding import Kernel, Rounding, rounded

# Elements whose bf16 moments exist in float32 at a time, while they are updated.
SLICE_ELEMENTS = 1 << 24

Decays = Callable[[str, tuple[int, ...]], bool]


def build_optimizer(
    parameters: Sequence[LocalParameter],
    cfg: OptimConfig,
    *,
    no_decay: Decays,
    hidden_matrix: Decays,
    compiler: str | None = None,
) -> "Updates":
    """The optimiser of `cfg.name`, with weight decay only where `no_decay` is false.

    Args:
        no_decay: (name, global shape) → whether the parameter is exempt (norms, one-dimensional ones).
        hidden_matrix: (name, global shape) → whether Muon may take it (matrices inside blocks).
        compiler: the torch.compile backend for the rounding of bf16 state; None: eager.
    """
    if cfg.name not in ("adamw", "muon"):
        raise ValueError(f"optim.name: {cfg.name!r} is not one of adamw, muon")
    groups: dict[tuple[str, float], list[LocalParameter]] = {}
    for parameter in parameters:
        muon = cfg.name == "muon" and hidden_matrix(parameter.name, parameter.shape)
        decay = 0.0 if no_decay(parameter.name, parameter.shape) else cfg.weight_decay
        groups.setdefault(("muon" if muon else "adamw", decay), []).append(parameter)
    beside_muon = cfg.adamw_lr / cfg.lr if cfg.name == "muon" and cfg.adamw_lr else 1.0
    param_groups = [
        {
            "params": [p.tensor for p in members],
            "members": members,
            "kind": kind,
            "weight_decay": decay,
            "lr_ratio": beside_muon if kind == "adamw" else 1.0,
        }
        for (kind, decay), members in groups.items()
    ]
    return Updates(
        param_groups,
        lr=cfg.lr,
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        momentum=cfg.momentum,
        state_dtype=torch_dtype(cfg.state_dtype),
        compiler=compiler,
    )


class Updates:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) for the groups of kind `adamw`, Muon for those of kind
    `muon`.

    State tensors have the local shape of their parameter and are named as torch.optim.AdamW names them:
    `exp_avg`, `exp_avg_sq`; Muon keeps `momentum_buffer`. `steps` counts the updates and is the only scalar
    state. State in bfloat16 is updated in float32 and rounded stochastically; see `rounding` for why.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the
    nearest semi-orthogonal matrix, found by five Newton-Schulz iterations; its size is matched to AdamW's
    as 0.2·sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982), so both kinds share one learning rate.

    An `engine.LocalOptimizer`, but no torch.optim.Optimizer: making one of those imports torch._dynamo, which
    takes a second at every start, and nothing of it was used.
    """

    def __init__(
        self,
        param_groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        state_dtype: torch.dtype = torch.float32,
        compiler: str | None = None,
    ) -> None:
        settings = {"lr": lr, "lr_ratio": 1.0, "betas": betas, "eps": eps, "momentum": momentum}
        self.param_groups: list[dict[str, Any]] = [settings | group for group in param_groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.grad_scale: Tensor | None = None
        self._exact = state_dtype == torch.float32
        # Eager it is some thirty passes over memory a moment, on a GPU ten times the update itself. Slices
        # have many shapes, and one graph a number of dimensions serves them all.
        self._kernel: Kernel | None = None
        if compiler and not self._exact:
            self._kernel = torch.compile(rounded, backend=compiler, dynamic=True)
        self._steps = 0
        # The fused kernel counts on the device, in one tensor a parameter; group index → those tensors.
        self._device_steps: dict[int, list[Tensor]] = {}
        for group in self.param_groups:
            names = ("momentum_buffer",) if group["kind"] == "muon" else ("exp_avg", "exp_avg_sq")
            for tensor in group["params"]:
                self.state[tensor] = {name: torch.zeros_like(tensor, dtype=state_dtype) for name in names}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter from its summed gradient divided by `grad_scale`."""
        for index, group in enumerate(self.param_groups):
            if group["kind"] == "muon":
                self._muon(group)
            elif self._exact:
                self._adamw(index, group)
            else:
                self._adamw_rounded(group)
        self._steps += 1

    @property
    def steps(self) -> int:
        """Updates done: AdamW's bias correction is all that depends on it."""
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        self._device_steps.clear()

    def _adamw(self, index: int, group: dict[str, Any]) -> None:
        tensors = [t for t in group["params"] if t.numel()]
        if not tensors:
            return
        if index not in self._device_steps:
            self._device_steps[index] = self._counted(tensors)
        states = [self.state[t] for t in tensors]
        self._fused(
            group,
            tensors,
            [_grad(t) for t in tensors],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            self._device_steps[index],
        )

    def _adamw_rounded(self, group: dict[str, Any]) -> None:
        """The same update, slice by slice, with moments that live in bfloat16."""
        for member in group["members"]:
            tensor = member.tensor
            if not tensor.numel():
                continue
            names = ("exp_avg", "exp_avg_sq")
            roundings = [Rounding.of(member, name, self._steps) for name in names]
            rows = max(1, SLICE_ELEMENTS * len(tensor) // tensor.numel())
            for first in range(0, len(tensor), rows):
                part = slice(first, first + rows)
                stored = [self.state[tensor][name][part] for name in names]
                exact = [moment.float() for moment in stored]
                here = [tensor[part]]
                grads = [_grad(tensor)[part]]
                self._fused(group, here, grads, exact[:1], exact[1:], self._counted(here))
                for moment, rounding, value in zip(stored, roundings, exact):
                    moment.copy_(rounding(value, first, self._kernel))

    def _counted(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.full((), float(self._steps), device=t.device) for t in tensors]

    def _fused(
        self,
        group: dict[str, Any],
        tensors: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        fused_adamw(
            tensors,
            grads,
            exp_avgs,
            exp_avg_sqs,
            steps,
            lr=group["lr"] * group["lr_ratio"],
            settings=group,
            divisor=self.grad_scale,
        )

    def _muon(self, group: dict[str, Any]) -> None:
        families: dict[Any, list[LocalParameter]] = {}
        for member in group["members"]:
            families.setdefault(member.placement, []).append(member)
        for members in families.values():
            directions = (self._muon_direction(member, group["momentum"]) for member in members)
            for member, update in zip(members, members[0].map_whole(directions, orthogonalize)):
                size = group["lr"] * 0.2 * max(member.shape) ** 0.5
                member.tensor.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _muon_direction(self, member: LocalParameter, momentum: float) -> Tensor:
        """Nesterov's: the gradient, and a share of the momentum that has just taken it up."""
        grad = _grad(member.tensor)
        if self.grad_scale is not None:
            grad = grad / self.grad_scale
        buffer = self.state[member.tensor]["momentum_buffer"]
        if self._exact:
            return grad.lerp(buffer.lerp_(grad, 1.0 - momentum), momentum)
        exact = buffer.float().lerp_(grad, 1.0 - momentum)
        buffer.copy_(Rounding.of(member, "momentum_buffer", self._steps)(exact, kernel=self._kernel))
        return grad.lerp(exact, momentum)


def _grad(tensor: Tensor) -> Tensor:
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between about 0.7 and 1.2.

    Newton-Schulz with the quintic coefficients of Jordan et al. (2024); [rows, columns] in and out,
    computed in bfloat16 on CUDA, where the iteration is known to tolerate it, else in float32.
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
