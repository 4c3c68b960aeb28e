"""The gradients of this rank's parameters between backward and update: fetched, summed over tp, counted."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.gradients.replicas import Reductions, Replicas
from parallel.gradients.rows import Rows
from parallel.gradients.scaling import squares
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh, end_to_end_group
from parallel.parameters.ownership import counts_in_norm
from parallel.parameters.sharded_parameter import ShardedParameter, local_of


def make_reductions(
    plan: ModelPlan,
    stages: Sequence[nn.Module],
    parameters: Sequence[ShardedParameter],
    layout: Layout,
    mesh: Mesh,
    device: torch.device,
) -> Reductions:
    """What adds gradients up over the data ranks of this layout."""
    if mesh.data is not None:
        from parallel.gradients import fsdp  # only where it is used: the import takes half a second

        return fsdp.Sharded(stages, layout, mesh, device)
    if mesh.shard.group is not None:
        return Rows(plan, stages, parameters, mesh.shard)
    return Replicas([one.module_parameter for one in parameters if one.trained], mesh.replicate.group)


class LocalGradients:
    """Gradients in `ShardedParameter.tensor.grad`, where the optimiser reads them.

    parameters: of this rank; the frozen ones are left alone.
    reductions: what adds the gradients up over the data ranks.
    has_tied: whether the model ties parameters, on whatever stage.
    """

    def __init__(
        self,
        parameters: Sequence[ShardedParameter],
        reductions: Reductions,
        *,
        layout: Layout,
        mesh: Mesh,
        has_tied: bool,
        device: torch.device,
    ) -> None:
        self._all = parameters
        self._parameters = [one for one in parameters if one.trained]
        self._reductions = reductions
        self._counted = [one for one in self._parameters if counts_in_norm(one, mesh)]
        self._tp = mesh.tp
        self._device = device
        first, last = layout.pp_index_of(0), layout.pp_index_of(layout.stages - 1)
        # All ranks take part in making the group, also those of middle stages, which hold no tied parameter.
        self._ends = end_to_end_group(layout, first, last) if has_tied and first != last else None

    @torch.no_grad()
    def take(self) -> None:
        """Wait for the reduced gradients of a backward, and add them to those taken before."""
        self._reductions.finish()
        there, new = [], []
        for parameter in self._parameters:
            if parameter.tensor is parameter.module_parameter or parameter.module_parameter.grad is None:
                continue
            grad, parameter.module_parameter.grad = local_of(parameter.module_parameter.grad), None
            if parameter.tensor.grad is None:
                parameter.tensor.grad = grad
            else:
                there.append(parameter.tensor.grad)
                new.append(grad)
        if there:
            torch._foreach_add_(there, new)

    @torch.no_grad()
    def collect(self) -> None:
        """Take the last gradients; afterwards every trained parameter has one."""
        self.take()
        for parameter in self._parameters:
            if parameter.tensor.grad is None:  # a parameter that nothing used
                parameter.tensor.grad = torch.zeros_like(parameter.tensor)

    def sum_shared(self) -> None:
        """Sum partial gradients: of parameters that tp leaves whole, and of tied ones in two stages."""
        grads = [_grad(parameter) for parameter in self._parameters if parameter.tp_dim is None]
        if self._tp.group is not None and grads:
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, group=self._tp.group)
            torch._foreach_copy_(
                grads, [f.view_as(g) for f, g in zip(flat.split([g.numel() for g in grads]), grads)]
            )
        tied: dict[str, list[Tensor]] = {}
        for parameter in self._parameters:
            if parameter.tied:
                tied.setdefault(parameter.name, []).append(_grad(parameter))
        for _, grads in sorted(tied.items()):
            if len(grads) == 2:  # this rank holds both ends of the pipeline
                grads[0].add_(grads[1])
                grads[1].copy_(grads[0])
            else:
                dist.all_reduce(grads[0], group=self._ends)

    def squares(self) -> Tensor:
        """Σ gradient² over what this rank counts: float64, scaled as the gradients are."""
        grads = [_grad(parameter) for parameter in self._counted]
        if not grads:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        return squares(grads)

    def drop(self) -> None:
        for parameter in self._parameters:
            parameter.module_parameter.grad = None
            if parameter.tensor is not parameter.module_parameter:
                parameter.tensor.grad = None

    def why_not_finite(self, *, alone: bool) -> str:
        """One line on why the gradient norm is not finite. alone: this process is the whole world."""
        weights = [one.name for one in self._all if not bool(one.tensor.isfinite().all())]
        if weights:
            return f"the weights are not finite (first in {weights[0]} on this rank)"
        here = [one.name for one in self._parameters if not bool(_grad(one).isfinite().all())]
        where = f"first in {here[0]}{'' if alone else ' on this rank'}" if here else "on another rank"
        if alone and not here:
            where = "each element is, and their norm is not"
        return f"the gradient is not finite ({where})"


def _grad(parameter: ShardedParameter) -> Tensor:
    assert parameter.tensor.grad is not None
    return parameter.tensor.grad
