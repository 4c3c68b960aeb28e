"""torch's fused AdamW kernel, with the settings that every engine's optimiser calls it with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw


def fused_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    settings: Mapping[str, Any],
    divisor: Tensor | None,
) -> None:
    """Update `parameters` in place by one step of AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    gradients, exp_avgs, exp_avg_sqs: one tensor of the same shape for each parameter.
    steps: updates done before this one, a float32 tensor [] for each parameter. The kernel counts in them.
    lr: the learning rate.
    settings: `betas`, `eps` and `weight_decay`, as an optimiser's parameter group holds them.
    divisor: what the kernel divides gradients by (law 3's single division, and clipping); None: nothing.
    """
    beta1, beta2 = settings["betas"]
    adamw(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=False,
        grad_scale=divisor,
        found_inf=None,
    )
