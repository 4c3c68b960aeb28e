"""The DeepSpeed engine: ZeRO 0-3 and offloading, driven through Accelerate; the torch engine's result."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.objective import (
    ComparesRows,
    Measures,
    ModelInputs,
    Objective,
    ReadsRows,
    WeighsTargets,
    measures_of,
)
from common.precision import Precision, torch_dtype
from parallel.deepspeed_engine import start
from parallel.deepspeed_engine.masters import Masters
from parallel.deepspeed_engine.optim import FlatAdamW
from parallel.engine import Chunk, Evaluation, Micro, StepResult
from parallel.gradients.comparison import Comparison, Outputs
from parallel.gradients.nothing_drawn import NothingDrawn
from parallel.gradients.scaling import Normalisation, squares
from parallel.gradients.sums import BySource, Sums, unpack
from parallel.layout.layout import Layout
from parallel.layout.mesh import Axis
from parallel.relied_on import insist
from parallel.world.runtime import Runtime


class DeepSpeedEngine:
    """See `engine.Engine`; the arithmetic is `TorchEngine`'s.

    DeepSpeed averages gradients over ranks, and over micro-batches by default. Here every micro-batch's loss
    is multiplied by ranks × loss scale / nominal and not divided by the number of micro-batches. So the
    gradient that the optimiser gets is that of the sum of loss × loss scale / nominal; `FlatAdamW` divides
    it by the true count, and clips. DeepSpeed's own clipping and loss scaling are off: they have no count.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: FlatAdamW,
        masters: Masters,
        objective: Objective,
        *,
        layout: Layout,
        runtime: Runtime,
        precision: Precision,
        clip: float,
        nominal_count: float,
        sources: int,
        leave: Callable[[], None],
    ) -> None:
        self._engine, self._optimizer, self._masters = engine, optimizer, masters
        self._objective, self._sources = objective, sources
        self._measures = measures_of(objective)
        self._comparison: Comparison | None = None
        if isinstance(objective, ComparesRows):
            group = dist.group.WORLD if layout.world > 1 else None
            self._comparison = Comparison(objective, Axis(runtime.rank, layout.dp, group), Axis(0, 1, None))
        self._compared: list[Outputs] = []  # of an evaluation that goes on
        self._layout, self._runtime = layout, runtime
        self._normalisation = Normalisation(precision=precision, nominal_count=nominal_count, clip=clip)
        self._dtype = torch_dtype(precision)
        self._grad_norm = math.inf
        self._drawn = NothingDrawn(runtime.device)
        self._leave = leave

    @property
    def data_rank(self) -> int:
        return self._layout.data_rank(self._runtime.rank)

    @property
    def data_ranks(self) -> int:
        return self._layout.dp

    @property
    def is_first_of_data_rank(self) -> bool:
        return self._layout.is_first_of_data_rank(self._runtime.rank)

    @property
    def axes(self) -> dict[str, str]:
        return {}  # DeepSpeed's groups are its own

    # -- one step -------------------------------------------------------------------------------------------

    def step(
        self, batches: Sequence[Micro], *, lr: float, stop: bool = False, exchange: bool = False
    ) -> StepResult:
        """Forward, backward and update over the global batch; `batches` is this data rank's part of it."""
        self._masters.forget()
        normalisation = self._normalisation
        loss_scale = normalisation.loss_scale
        with self._drawn.watched():
            sums = self._accumulate(batches, normalisation.loss_factor * self.data_ranks)
        stops, exchanges, targets, loss_sum, count, by_source = self._reduce(sums, stop, exchange)
        skipped = self._update(lr, normalisation.to_mean(count))
        overflow = not math.isfinite(self._grad_norm)
        learnt = overflow or count > 0  # an empty batch shows nothing about the loss scale
        fault = "the gradient is not finite" if learnt and normalisation.update(overflow=overflow) else ""
        return StepResult(
            loss_sum=loss_sum,
            count=count,
            grad_norm=self._grad_norm,
            skipped=skipped,
            stop=stops > 0,
            loss_scale=loss_scale,
            fault=fault,
            exchange=exchanges > 0,
            sources=by_source,
            unweighted=targets if isinstance(self._objective, WeighsTargets) else None,
        )

    def _accumulate(self, batches: Sequence[Micro], factor: float) -> Sums:
        """Run forward and backward of factor × loss over the micro-batches. Return this rank's sums."""
        sums = Sums(self._sources, 3, self._runtime.device)
        self._engine.train()
        if self._comparison is not None:
            self._accumulate_compared(self._comparison, batches, factor, sums)
            return sums
        for number, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            inputs, source = self._inputs(batch)
            losses, counts = self._objective.loss(self._forward(inputs), inputs)
            self._engine.backward(losses.sum() * factor, scale_wrt_gas=False)
            sums.add(losses, counts, source)
            if isinstance(self._objective, WeighsTargets):
                sums.others[-1] += self._objective.targets(inputs).sum()
        return sums

    def _accumulate_compared(
        self, comparison: Comparison, batches: Sequence[Micro], factor: float, sums: Sums
    ) -> None:
        """The two passes of `gradients.comparison`."""
        with torch.no_grad():
            outputs = [self._outputs(comparison, batch) for batch in batches]
        found = comparison.compare(Outputs.joined(outputs), factor)
        sources = [batch.tensors["source"] for batch in batches if "source" in batch.tensors]
        sums.add(found.losses, found.counts, torch.cat(sources).to(self._runtime.device) if sources else None)
        assert found.seeds is not None
        seeds = found.seeds.split([len(one.rows) for one in outputs])
        for number, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            inputs, _ = self._inputs(batch)
            output = self._forward(inputs)
            self._engine.backward((output * seeds[number]).sum(), scale_wrt_gas=False)

    def _outputs(self, comparison: Comparison, batch: Micro) -> Outputs:
        inputs, _ = self._inputs(batch)
        counted = comparison.objective.counted(batch.tensors, batch.sequences)
        return comparison.whole(self._forward(inputs), counted.to(self._runtime.device))

    def _forward(self, inputs: ModelInputs) -> Tensor:
        """Run the model, on numbers of the run's precision: as FSDP does, and DeepSpeed does not."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        output: Tensor = self._engine(cast(inputs.x), **{k: cast(t) for k, t in inputs.kwargs.items()})
        return output

    def _inputs(self, batch: Micro) -> tuple[ModelInputs, Tensor | None]:
        """(the model's inputs, the data source of each row where that is known)."""
        moved = batch.to(self._runtime.device)
        return self._objective.inputs(moved.tensors, moved.sequences), moved.tensors.get("source")

    def _reduce(
        self, sums: Sums, stop: bool, exchange: bool = False
    ) -> tuple[float, float, float, float, float, BySource]:
        """(ranks asked to stop, ranks that ask for an exchange, targets of an objective that weighs them,
        loss sum, count, these two by source) of all ranks.
        """
        sums.others[0], sums.others[1] = float(stop), float(exchange)
        dist.all_reduce(sums.packed)
        stops, exchanges, targets, *rest = sums.packed.tolist()
        return stops, exchanges, targets, *unpack(rest)

    def _update(self, lr: float, to_mean: float) -> bool:
        """Update with gradients × `to_mean`, clipped.

        Return whether the update was skipped, because a gradient was not finite or `to_mean` is 0.
        """
        self._grad_norm = math.inf

        @functools.cache
        def divisor() -> Tensor | None:  # called once a group, when DeepSpeed has computed the norm
            norm = self._grad_norm = self._norm() * to_mean
            if not math.isfinite(norm) or not to_mean:
                return None
            return torch.tensor(1.0 / self._normalisation.clipped(to_mean, norm))

        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.divisor = divisor
        self._engine.step()
        self._optimizer.divisor = None
        skipped = not math.isfinite(self._grad_norm) or not to_mean
        self._optimizer.steps += not skipped
        return skipped

    def _norm(self) -> float:
        """The norm over all ranks of the gradients as DeepSpeed holds them."""
        if self._engine.optimizer is not self._optimizer:
            insist("deepspeed", self._engine.optimizer, "_global_grad_norm")
            return float(self._engine.optimizer._global_grad_norm)
        grads = [
            parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None
        ]
        return math.sqrt(squares(grads))

    # -- evaluation -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False, last: bool = True) -> Evaluation:
        """See `engine.Engine.evaluate`."""
        sums = Sums(len(self._measures), 3, self._runtime.device)
        self._engine.eval()
        for batch in batches:
            if self._comparison is not None:
                self._compared.append(self._outputs(self._comparison, batch))
                continue
            inputs, _ = self._inputs(batch)
            output = self._forward(inputs)
            sums.add(*self._objective.loss(output, inputs), None)
            if isinstance(self._objective, Measures):
                sums.measure(self._objective.measure(output, inputs))
        if self._comparison is not None and last and self._compared:
            found = self._comparison.compare(Outputs.joined(self._compared))
            sums.add(found.losses, found.counts, None)
            assert found.figures is not None
            sums.measure(found.figures)
        stops, _, _, loss_sum, count, figures = self._reduce(sums, stop)
        if last or stops:
            self._compared.clear()
        return Evaluation(loss_sum, count, stops > 0, dict(zip(self._measures, figures, strict=True)))

    @torch.no_grad()
    def rows(self, batches: Sequence[Micro], wanted: ReadsRows) -> Tensor:
        """See `engine.Engine.rows`."""
        self._engine.eval()
        device = self._runtime.device
        shape = (self.data_ranks, len(batches), len(batches[0].sequences), wanted.columns)
        found = torch.zeros(shape, device=device)
        for number, batch in enumerate(batches):
            moved = batch.to(device)
            inputs = wanted.inputs(moved.tensors, moved.sequences)
            found[self.data_rank, number] = wanted.read(self._forward(inputs), inputs)
        dist.all_reduce(found)
        return found.cpu()

    # -- state ----------------------------------------------------------------------------------------------

    def chunks(self) -> list[Chunk]:
        """Master weights and optimiser state: this rank's slice of each, as chunks of live memory.

        State that is offloaded to nvme comes as copies, valid until the next step; `load` writes them back.
        """
        return self._masters.chunks()

    def batches(self) -> Iterator[list[Chunk]] | None:
        """See `engine.KeepsOnDisk`."""
        return self._masters.batches()

    def frozen(self) -> list[Chunk]:
        """None: this engine trains every parameter."""
        return []

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor: the optimiser's updates so far and fp16's loss scale."""
        return {"updates": self._optimizer.steps, **self._normalisation.state()}

    def load(self, scalars: dict[str, Any]) -> None:
        """Take over after the chunks were filled."""
        self._optimizer.steps = int(scalars["updates"])
        self._normalisation.restore(scalars)
        self._masters.publish()

    def close(self) -> None:
        """Let go of the model. The process group is the runtime's."""
        self._engine.destroy()
        self._engine = self._masters = None  # type: ignore[assignment]
        start.release()
        self._leave()
