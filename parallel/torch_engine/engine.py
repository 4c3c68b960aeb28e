"""The torch engine: one optimiser step over any layout, divided once by the global count (law 3)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.model_plan import ModelPlan
from common.objective import ComparesRows, Objective, ReadsRows, WeighsTargets, measures_of
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
from parallel.gradients.comparison import Comparison
from parallel.gradients.scaling import Normalisation
from parallel.gradients.sums import BySource, Sums, unpack
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh, data_axis
from parallel.parameters.sharded_parameter import ShardedParameter
from parallel.parameters.whole_matrices import WholeMatrices
from parallel.torch_engine.local_gradients import LocalGradients, make_reductions
from parallel.torch_engine.parallelize import Parallelized
from parallel.torch_engine.passes import Passes

if TYPE_CHECKING:
    from parallel.pipeline.pipeline import Pipeline


LookAtGradients = Callable[[Sequence[ShardedParameter], float], None]
"""Takes this rank's trained parameters, with summed gradients in `tensor.grad`, and the factor that makes
them the gradient of the mean loss."""


@dataclass(frozen=True)
class Totals:
    """What the one reduction of a step sums over all ranks.

    grad_squares: Σ gradient², scaled as the gradients are.
    stop, exchange: numbers of ranks that were asked to stop, and that ask for an exchange.
    unweighted: targets of an objective that weighs them, each counted as 1.
    loss_sum, count: of the global batch.
    sources: (loss_sum, count) of each data source.
    """

    grad_squares: float
    stop: float
    exchange: float
    unweighted: float
    loss_sum: float
    count: float
    sources: BySource


class TorchEngine:
    """FSDP2 × tensor × pipeline parallelism; see `engine.Engine`.

    Gradients are sums over micro-batches and ranks of the gradient of loss × loss scale / nominal, where
    nominal is a power of two near the count, so that gradients keep a mean's magnitude. The update divides by
    the true count.
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
        nominal_count: float,
        sources: int = 0,
    ) -> None:
        self._layout, self._mesh, self._rank = layout, mesh, rank
        self._sources, self._device = sources, device
        self._measures, self._weighs = measures_of(objective), isinstance(objective, WeighsTargets)
        self._normalisation = Normalisation(precision=precision, nominal_count=nominal_count, clip=clip)
        self._parameters = parallelized.parameters
        self._trained = [one for one in self._parameters if one.trained]
        self._modules = list(parallelized.stages.values())
        self._reductions = make_reductions(plan, self._modules, self._parameters, layout, mesh, device)
        self._gradients = LocalGradients(
            self._parameters,
            self._reductions,
            layout=layout,
            mesh=mesh,
            has_tied=bool(plan.tied),
            device=device,
        )
        self._passes: Passes | None = Passes(
            self._modules,
            _pipeline(parallelized.stages, plan, layout, mesh, device, precision),
            objective,
            self._reductions,
            self._gradients,
            mesh=mesh,
            device=device,
            comparison=_comparison(objective, layout, mesh),
        )
        self._addresses = [parameter.tensor.data_ptr() for parameter in self._parameters]
        self._optimizer: LocalOptimizer = optimizer_factory(
            [
                LocalParameter(
                    name=one.name,
                    tensor=one.tensor,
                    shape=one.shape,
                    offset=one.offset,
                    placement=(one.shape, one.tp_dim),
                    map_whole=WholeMatrices(one.shape, one.tp_dim, mesh).map,
                )
                for one in self._trained
            ]
        )
        self._divisor = torch.ones((), device=device)
        self._look: LookAtGradients | None = None

    @property
    def stages(self) -> Sequence[nn.Module]:
        """This rank's part of the model, a module for each pipeline stage: for hooks."""
        return self._modules

    def look_at_gradients(self, look: LookAtGradients | None) -> None:
        """From here on, call `look` in each step before the update; None: call nothing."""
        self._look = look

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
        assert self._passes is not None, "the engine is closed"
        normalisation = self._normalisation
        loss_scale, loss_factor = normalisation.loss_scale, normalisation.loss_factor
        sums = Sums(self._sources, 4, self._device)
        self._passes.train(batches, sums, loss_factor)
        self._gradients.collect()
        self._gradients.sum_shared()
        totals = self._reduce(sums, self._gradients.squares(), stop, exchange)
        to_mean = normalisation.to_mean(totals.count)
        if self._look is not None:
            self._look(self._trained, to_mean)
        overflow = not math.isfinite(totals.grad_squares)
        skipped = overflow or totals.count == 0
        grad_norm = math.inf if overflow else math.sqrt(totals.grad_squares) * to_mean
        if not skipped:
            self._update(lr, normalisation.clipped(to_mean, grad_norm))
        learnt = overflow or totals.count > 0  # an empty batch shows nothing about the loss scale
        fault = ""
        if learnt and normalisation.update(overflow=overflow):
            fault = self._gradients.why_not_finite(alone=self._layout.world == 1)
        self._gradients.drop()
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
            unweighted=totals.unweighted if self._weighs else None,
        )

    def _reduce(self, sums: Sums, squares: Tensor, stop: bool, exchange: bool) -> Totals:
        """The only blocking collective of a step: everything that all ranks must agree on, in one tensor."""
        if self._mesh.tp.rank > 0:
            sums.packed.zero_()  # every tp rank has computed the same loss, which counts once
        sums.others[0] = squares  # one that is not finite stays so in the sum
        sums.others[1] = float(stop)
        sums.others[2] = float(exchange)
        if self._layout.world > 1:
            dist.all_reduce(sums.packed)
        grad_squares, stops, exchanges, targets, *rest = sums.packed.tolist()
        return Totals(grad_squares, stops, exchanges, targets, *unpack(rest))

    def _update(self, lr: float, factor: float) -> None:
        """One optimiser step with gradients × factor."""
        self._optimizer.grad_scale = self._divisor.fill_(1.0 / factor)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False, last: bool = True) -> Evaluation:
        """See `engine.Engine.evaluate`."""
        assert self._passes is not None, "the engine is closed"
        sums = Sums(len(self._measures), 1, self._device)
        self._passes.evaluate(batches, sums, last=last)
        sums.others[0] = float(stop)
        if self._layout.world > 1:
            dist.all_reduce(sums.packed)
        stops, *rest = sums.packed.tolist()
        if stops:
            self._passes.forget_compared()
        loss_sum, count, figures = unpack(rest)
        return Evaluation(loss_sum, count, stops > 0, dict(zip(self._measures, figures, strict=True)))

    @torch.no_grad()
    def rows(self, batches: Sequence[Micro], wanted: ReadsRows) -> Tensor:
        """See `engine.Engine.rows`."""
        assert self._passes is not None, "the engine is closed"
        return self._passes.read_rows(batches, wanted, self.data_rank, self.data_ranks)

    def chunks(self) -> list[Chunk]:
        """Trained master weights and optimiser state, as live memory; parameters without an element here
        left out.
        """
        self._check_addresses()
        found = []
        for parameter in self._trained:
            if parameter.tensor.numel() == 0:
                continue
            found.append(parameter.chunk("model", parameter.tensor))
            for key, state in self._optimizer.state[parameter.tensor].items():
                if isinstance(state, Tensor) and state.shape == parameter.tensor.shape:
                    found.append(parameter.chunk(f"optim.{key}", state))
        return found

    def frozen(self) -> list[Chunk]:
        """See `engine.Engine.frozen`."""
        self._check_addresses()
        held = (one for one in self._parameters if not one.trained and one.tensor.numel())
        return [parameter.chunk("model", parameter.tensor) for parameter in held]

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor: the optimiser's updates so far and fp16's loss scale."""
        return {"updates": self._optimizer.steps, **self._normalisation.state()}

    def load(self, scalars: dict[str, Any]) -> None:
        """Continue from saved `scalars`, once the chunks have been filled."""
        self._check_addresses()
        self._optimizer.steps = int(scalars["updates"])
        self._normalisation.restore(scalars)
        self._reductions.changed()

    def close(self) -> None:
        """Release the model. The process group is the runtime's."""
        self._passes = None
        self._modules.clear()

    def _check_addresses(self) -> None:
        moved = [
            p.name
            for p, was in zip(self._parameters, self._addresses)
            if was != p.address and p.tensor.numel()
        ]
        assert not moved, f"{moved[0]} lies elsewhere than when the engine was built"


def _comparison(objective: Objective, layout: Layout, mesh: Mesh) -> Comparison | None:
    """None where a row's loss depends on that row alone."""
    if not isinstance(objective, ComparesRows):
        return None
    return Comparison(objective, data_axis(layout, mesh), mesh.cp)


def _pipeline(
    stages: dict[int, nn.Module],
    plan: ModelPlan,
    layout: Layout,
    mesh: Mesh,
    device: torch.device,
    precision: Precision,
) -> "Pipeline | None":
    """None without one. torch's pipelining is imported only where it is used: that takes a second."""
    if layout.pp == 1:
        return None
    from parallel.pipeline.pipeline import Pipeline

    return Pipeline(stages, plan.hidden_shape, layout, mesh, device, torch_dtype(precision))
