"""The torch engine: one optimiser step over any layout, divided once by the global count (law 3)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.model_plan import ModelPlan
from common.objective import ModelInputs, Objective
from common.precision import Precision, torch_dtype
from parallel.engine import (
    Chunk,
    Evaluation,
    LocalOptimizer,
    LocalParameter,
    Micro,
    OptimizerFactory,
    StepResult,
)
from parallel.gradients.replicas import Reductions, Replicas
from parallel.gradients.rows import Rows
from parallel.gradients.scaling import Normalisation, squares
from parallel.gradients.sums import BySource, Sums, unpack
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh, end_to_end_group
from parallel.parameters.ownership import counts_in_norm
from parallel.parameters.sharded_parameter import ShardedParameter, local_of
from parallel.parameters.whole_matrices import WholeMatrices
from parallel.torch_engine.parallelize import Parallelized
from parallel.transforms.context import slice_inputs

if TYPE_CHECKING:
    from parallel.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Totals:
    """What the one reduction of a step brings together, over all ranks."""

    grad_squares: float
    stop: float
    exchange: float
    loss_sum: float
    count: float
    sources: BySource


class TorchEngine:
    """FSDP2 × tensor × pipeline parallelism; see `engine.Engine`.

    Gradients are sums: of loss × loss scale / `nominal`, over micro-batches and ranks, where nominal is a
    power of two near the count, so that they keep a mean's magnitude. The true count is divided out in the
    update.
    """

    def __init__(
        self,
        plan: ModelPlan,
        parallelized: Parallelized,
        objective: Objective,
        optimizer_factory: OptimizerFactory,
        *,
        layout: Layout,
        mesh: Mesh,
        rank: int,
        device: torch.device,
        precision: Precision,
        clip: float,
        nominal_count: int,
        sources: int = 0,
    ) -> None:
        self._layout = layout
        self._rank = rank
        self._sources = sources
        self._mesh = mesh
        self._device = device
        self._precision = precision
        self._objective = objective
        self._normalisation = Normalisation(precision=precision, nominal_count=nominal_count, clip=clip)
        self._parameters = parallelized.parameters
        self._counted = [one for one in self._parameters if counts_in_norm(one, mesh)]
        self._modules = list(parallelized.stages.values())
        # FSDP and torch's pipelining are imported where they are used: that takes a second, and one process
        # needs neither.
        self._reductions: Reductions
        if mesh.data is not None:
            from parallel.gradients import fsdp

            self._reductions = fsdp.Sharded(self._modules, layout, mesh, device)
        elif mesh.shard.group is not None:
            self._reductions = Rows(plan, self._modules, self._parameters, mesh.shard)
        else:
            self._reductions = Replicas([p.module_parameter for p in self._parameters], mesh.replicate.group)
        self._addresses = [parameter.tensor.data_ptr() for parameter in self._parameters]
        self._pipeline: Pipeline | None = None
        if layout.pp > 1:
            from parallel.pipeline import pipeline

            dtype = torch_dtype(precision)
            self._pipeline = pipeline.Pipeline(
                parallelized.stages, parallelized.first, layout, mesh, device, dtype
            )
        ends = layout.pp_index_of(0), layout.pp_index_of(layout.stages - 1)
        # By the plan, so that all ranks decide alike: a middle stage holds no tied parameter.
        across = bool(plan.tied) and ends[0] != ends[1]
        self._ends = end_to_end_group(layout, *ends) if across else None
        self._optimizer: LocalOptimizer = optimizer_factory(
            [
                LocalParameter(
                    p.name,
                    p.tensor,
                    p.shape,
                    p.offset,
                    (p.shape, p.tp_dim),
                    WholeMatrices(p.shape, p.tp_dim, mesh).map,
                )
                for p in self._parameters
            ]
        )
        self._divisor = torch.ones((), device=device)

    @property
    def data_rank(self) -> int:
        return self._layout.data_rank(self._rank)

    @property
    def data_ranks(self) -> int:
        return self._layout.dp

    @property
    def is_first_of_data_rank(self) -> bool:
        return self._layout.is_first_of_data_rank(self._rank)

    @property
    def axes(self) -> dict[str, str]:
        return self._mesh.axes

    def step(
        self, batches: Sequence[Micro], *, lr: float, stop: bool = False, exchange: bool = False
    ) -> StepResult:
        """Forward, backward and update over the global batch; `batches` is this data rank's part of it."""
        normalisation = self._normalisation
        loss_scale = normalisation.loss_scale
        sums = self._accumulate(batches, normalisation.loss_factor)
        self._collect_gradients()
        self._sum_shared_gradients()
        totals = self._reduce(sums, self._grad_squares(), stop, exchange)
        to_mean = normalisation.to_mean(totals.count)
        overflow = not math.isfinite(totals.grad_squares)
        skipped = overflow or totals.count == 0
        grad_norm = math.inf if overflow else math.sqrt(totals.grad_squares) * to_mean
        if not skipped:
            self._update(lr, normalisation.clipped(to_mean, grad_norm))
        learnt = overflow or totals.count > 0  # an empty batch says nothing of the loss scale
        fault = self._not_finite() if learnt and normalisation.update(overflow=overflow) else ""
        self._drop_gradients()
        return StepResult(
            loss_sum=totals.loss_sum,
            count=totals.count,
            grad_norm=grad_norm,
            skipped=skipped,
            stop=totals.stop > 0,
            loss_scale=loss_scale,
            fault=fault,
            exchange=totals.exchange > 0,
            sources=totals.sources,
        )

    def _accumulate(self, batches: Sequence[Micro], factor: float) -> Sums:
        """Backward of factor × loss over the micro-batches → this rank's sums."""
        sums = Sums(self._sources, 3, self._device)

        def scaled_loss(output: Tensor, inputs: ModelInputs, source: Tensor | None) -> Tensor:
            losses, counts = self._objective.loss(output, inputs)
            sums.add(losses, counts, source)
            return losses.sum() * factor

        self._set_mode(training=True)
        if self._pipeline is not None:
            fed = [self._inputs(batch) for batch in batches]
            self._pipeline.train(
                [inputs for inputs, _ in fed], lambda output, number: scaled_loss(output, *fed[number])
            )
        else:
            self._accumulate_whole(batches, scaled_loss)
        return sums

    def _accumulate_whole(
        self, batches: Sequence[Micro], scaled_loss: Callable[[Tensor, ModelInputs, Tensor | None], Tensor]
    ) -> None:
        (model,) = self._modules
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            self._reductions.before_backward(last=last)
            inputs, source = self._inputs(batch)
            scaled_loss(model(inputs.x, **inputs.kwargs), inputs, source).backward()
            if not (last or self._reductions.adds_up):
                self._take_gradients()

    def _set_mode(self, *, training: bool) -> None:
        for module in self._modules:
            if module.training != training:  # it walks the whole model
                module.train(training)

    def _inputs(self, batch: Micro) -> tuple[ModelInputs, Tensor | None]:
        """What this rank feeds the model, and the data source of each row where that is known."""
        moved = batch.to(self._device)
        inputs = slice_inputs(self._objective.inputs(moved.tensors, moved.sequences), self._mesh.cp)
        return inputs, moved.tensors.get("source")

    @torch.no_grad()
    def _collect_gradients(self) -> None:
        self._take_gradients()
        for parameter in self._parameters:
            if parameter.tensor.grad is None:  # a parameter that nothing used
                parameter.tensor.grad = torch.zeros_like(parameter.tensor)

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Wait for the reduced gradients of this rank's pieces, and add them to those it has."""
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

    def _sum_shared_gradients(self) -> None:
        """Partial gradients become whole: of parameters every tp rank has, and of tied ones in two stages."""
        if self._mesh.tp.group is not None:
            grads = [_grad(parameter) for parameter in self._parameters if parameter.tp_dim is None]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, group=self._mesh.tp.group)
            torch._foreach_copy_(
                grads, [f.view_as(g) for f, g in zip(flat.split([g.numel() for g in grads]), grads)]
            )
        tied: dict[str, list[Tensor]] = {}
        for parameter in self._parameters:
            if parameter.tied:
                tied.setdefault(parameter.name, []).append(_grad(parameter))
        for _, grads in sorted(tied.items()):
            if len(grads) == 2:  # both ends of the pipeline are here
                grads[0].add_(grads[1])
                grads[1].copy_(grads[0])
            else:
                dist.all_reduce(grads[0], group=self._ends)

    def _grad_squares(self) -> Tensor:
        """Σ gradient² over what this rank counts: float64, scaled as the gradients are."""
        grads = [_grad(parameter) for parameter in self._counted]
        if not grads:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        return squares(grads)

    def _reduce(self, sums: Sums, squares: Tensor, stop: bool, exchange: bool) -> Totals:
        """The only blocking collective of a step: everything that all ranks must agree on, in one tensor."""
        if self._mesh.tp.rank > 0:
            sums.packed.zero_()  # every tp rank has computed the same loss, which counts once
        sums.others[0] = squares  # one that is not finite stays so in the sum
        sums.others[1] = float(stop)
        sums.others[2] = float(exchange)
        if self._layout.world > 1:
            dist.all_reduce(sums.packed)
        grad_squares, asked, told, *rest = sums.packed.tolist()
        return Totals(grad_squares, asked, told, *unpack(rest))

    def _update(self, lr: float, factor: float) -> None:
        """One optimiser step with gradients × factor."""
        self._optimizer.grad_scale = self._divisor.fill_(1.0 / factor)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.module_parameter.grad = None
            if parameter.tensor is not parameter.module_parameter:
                parameter.tensor.grad = None

    def _not_finite(self) -> str:
        weights = [
            parameter.name for parameter in self._parameters if not bool(parameter.tensor.isfinite().all())
        ]
        if weights:
            return f"the weights are not finite (first in {weights[0]} on this rank)"
        here = [
            parameter.name for parameter in self._parameters if not bool(_grad(parameter).isfinite().all())
        ]
        alone = self._layout.world == 1
        where = f"first in {here[0]}{'' if alone else ' on this rank'}" if here else "on another rank"
        if alone and not here:
            where = "each element is, and their norm is not"
        return f"the gradient is not finite ({where})"

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False) -> Evaluation:
        """Over the batches of all data ranks, which must give equally many."""
        sums = Sums(0, 1, self._device)
        self._set_mode(training=False)

        def take(output: Tensor, inputs: ModelInputs) -> None:
            if self._mesh.tp.rank == 0:
                sums.add(*self._objective.loss(output, inputs), None)

        if self._pipeline is not None:
            all_inputs = [self._inputs(batch)[0] for batch in batches]
            self._pipeline.evaluate(all_inputs, lambda output, number: take(output, all_inputs[number]))
        else:
            (model,) = self._modules
            for batch in batches:
                inputs, _ = self._inputs(batch)
                take(model(inputs.x, **inputs.kwargs), inputs)
        sums.others[0] = float(stop)
        if self._layout.world > 1:
            dist.all_reduce(sums.packed)
        asked, loss_sum, count = sums.packed.tolist()
        return Evaluation(loss_sum, count, asked > 0)

    def chunks(self) -> list[Chunk]:
        """Master weights and optimiser state, as live memory. Empty pieces are left out."""
        self._check_addresses()
        found = []
        for parameter in self._parameters:
            if parameter.tensor.numel() == 0:
                continue
            found.append(parameter.chunk("model", parameter.tensor))
            for key, state in self._optimizer.state[parameter.tensor].items():
                if isinstance(state, Tensor) and state.shape == parameter.tensor.shape:
                    found.append(parameter.chunk(f"optim.{key}", state))
        return found

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor: the optimiser's updates so far and fp16's loss scale."""
        return {"updates": self._optimizer.steps, **self._normalisation.state()}

    def load(self, scalars: dict[str, Any]) -> None:
        """Take over after the chunks were filled."""
        self._check_addresses()
        self._optimizer.steps = int(scalars["updates"])
        self._normalisation.restore(scalars)
        self._reductions.changed()

    def close(self) -> None:
        """Let go of the model. The process group is the runtime's."""
        self._pipeline = None
        self._modules.clear()

    def _check_addresses(self) -> None:
        moved = [
            p.name
            for p, was in zip(self._parameters, self._addresses)
            if was != p.address and p.tensor.numel()
        ]
        assert not moved, f"{moved[0]} lies elsewhere than when the engine was built"


def _grad(parameter: ShardedParameter) -> Tensor:
    assert parameter.tensor.grad is not None
    return parameter.tensor.grad
