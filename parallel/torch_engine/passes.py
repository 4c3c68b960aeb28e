"""Forward and backward of one step's micro-batches on this rank, through a pipeline or one module."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.objective import Measures, ModelInputs, Objective, ReadsRows, TakesFeatures, WeighsTargets
from parallel.engine import Micro
from parallel.gradients.comparison import Comparison, Outputs
from parallel.gradients.nothing_drawn import NothingDrawn
from parallel.gradients.replicas import Reductions
from parallel.gradients.sums import Sums
from parallel.layout.mesh import Mesh
from parallel.torch_engine.local_gradients import LocalGradients
from parallel.transforms.context import slice_inputs

if TYPE_CHECKING:
    from parallel.pipeline.pipeline import Pipeline


class Passes:
    """Runs micro-batches through this rank's stages and adds up their losses.

    stages: this rank's modules; one, unless there is a pipeline.
    pipeline: None without one.
    objective: makes the model's inputs, and losses of the last stage's output.
    reductions: add gradients up over the data ranks; told before each backward, except in a pipeline.
    gradients: takes each micro-batch's gradients but the last's where `reductions.adds_up` is False, except
        in a pipeline.
    comparison: of the rows of the global batch; None where a row's loss depends on that row alone.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        pipeline: "Pipeline | None",
        objective: Objective,
        reductions: Reductions,
        gradients: LocalGradients,
        *,
        mesh: Mesh,
        device: torch.device,
        comparison: Comparison | None = None,
    ) -> None:
        self._stages, self._pipeline, self._objective = stages, pipeline, objective
        self._comparison = comparison
        self._compared: list[Outputs] = []
        self._reductions, self._gradients = reductions, gradients
        self._mesh, self._device = mesh, device
        self._drawn = NothingDrawn(device)

    def train(self, batches: Sequence[Micro], sums: Sums, factor: float) -> None:
        """Backward of factor × loss over the micro-batches; add their losses to `sums`, and to the last of
        its `others` the targets of an objective that weighs them.
        """
        with self._drawn.watched():
            self._train(batches, sums, factor)

    def _train(self, batches: Sequence[Micro], sums: Sums, factor: float) -> None:
        def scaled_loss(output: Tensor, inputs: ModelInputs, source: Tensor | None) -> Tensor:
            losses, counts = self._objective.loss(output, inputs)
            sums.add(losses, counts, source)
            if isinstance(self._objective, WeighsTargets):
                sums.others[-1] += self._objective.targets(inputs).sum()
            return losses.sum() * factor

        self._set_mode(training=True)
        if self._comparison is not None:
            self._train_comparing(self._comparison, batches, sums, factor)
        elif self._pipeline is not None:
            fed = [self._inputs(batch) for batch in batches]
            taken = self._objective
            self._pipeline.train(
                [inputs for inputs, _ in fed],
                lambda output, number: scaled_loss(output, *fed[number]),
                features=taken.features(fed[0][0]) if isinstance(taken, TakesFeatures) else None,
            )
        else:
            self._train_one_module(batches, scaled_loss)

    def _train_one_module(
        self, batches: Sequence[Micro], scaled_loss: Callable[[Tensor, ModelInputs, Tensor | None], Tensor]
    ) -> None:
        (model,) = self._stages
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            inputs, source = self._inputs(batch)
            self._reductions.before_backward(last=last)
            scaled_loss(model(inputs.x, **inputs.kwargs), inputs, source).backward()
            if not (last or self._reductions.adds_up):
                self._gradients.take()

    def _train_comparing(
        self, comparison: Comparison, batches: Sequence[Micro], sums: Sums, factor: float
    ) -> None:
        """The two passes of `gradients.comparison`."""

        def compare(outputs: Sequence[Outputs]) -> Sequence[Tensor]:
            """Add the losses to `sums`, and return the seeds of each micro-batch."""
            found = comparison.compare(Outputs.joined(outputs), factor)
            if self._mesh.cp.rank == 0:  # the ranks that share sequences have the same losses
                sources = [batch.tensors["source"] for batch in batches if "source" in batch.tensors]
                source = torch.cat(sources).to(self._device) if sources else None
                sums.add(found.losses, found.counts, source)
            assert found.seeds is not None
            return found.seeds.split([len(one.rows) for one in outputs])

        if self._pipeline is None:
            self._compare_one_module(comparison, batches, compare)
            return
        fed = [self._inputs(batch)[0] for batch in batches]
        outputs: list[Outputs] = []
        self._pipeline.evaluate(
            fed, lambda output, number: outputs.append(self._output(comparison, output, batches[number]))
        )
        seeds: Sequence[Tensor] = compare(outputs) if self._pipeline.has_last else []
        features = seeds[0].shape[1] if seeds else None
        self._pipeline.train(fed, lambda output, number: (output * seeds[number]).sum(), features=features)

    def _compare_one_module(
        self,
        comparison: Comparison,
        batches: Sequence[Micro],
        compare: Callable[[Sequence[Outputs]], Sequence[Tensor]],
    ) -> None:
        (model,) = self._stages
        with torch.no_grad():
            others = []
            for batch in batches[1:]:
                inputs, _ = self._inputs(batch)
                others.append(self._output(comparison, model(inputs.x, **inputs.kwargs), batch))
        # The first micro-batch runs forward once: its backward is the first.
        self._reductions.before_backward(last=len(batches) == 1)
        inputs, _ = self._inputs(batches[0])
        output = model(inputs.x, **inputs.kwargs)
        seeds = compare([self._output(comparison, output, batches[0]), *others])
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            if number > 0:
                self._reductions.before_backward(last=last)
                inputs, _ = self._inputs(batch)
                output = model(inputs.x, **inputs.kwargs)
            output.backward(seeds[number].to(output.dtype))
            del output
            if not (last or self._reductions.adds_up):
                self._gradients.take()

    def _output(self, comparison: Comparison, output: Tensor, batch: Micro) -> Outputs:
        counted = comparison.objective.counted(batch.tensors, batch.sequences)
        return comparison.whole(output, counted.to(self._device))

    def evaluate(self, batches: Iterable[Micro], sums: Sums, *, last: bool = True) -> None:
        """Forward over the batches; add their losses to `sums`.

        last: no more batches of the same rows follow. Rows that are compared with one another are so after
            the last ones, with those of all calls before.
        """
        self._set_mode(training=False)
        if self._comparison is not None:
            self._evaluate_comparing(self._comparison, batches, sums, last=last)
            return

        def take(output: Tensor, inputs: ModelInputs) -> None:
            # Every tp rank has computed the same loss, which counts once; in training `TorchEngine._reduce`
            # sees to that.
            if self._mesh.tp.rank == 0:
                sums.add(*self._objective.loss(output, inputs), None)
                if isinstance(self._objective, Measures):
                    sums.measure(self._objective.measure(output, inputs))

        if self._pipeline is not None:
            all_inputs = [self._inputs(batch)[0] for batch in batches]
            self._pipeline.evaluate(all_inputs, lambda output, number: take(output, all_inputs[number]))
        else:
            (model,) = self._stages
            for batch in batches:
                inputs, _ = self._inputs(batch)
                take(model(inputs.x, **inputs.kwargs), inputs)

    def read_rows(
        self, batches: Sequence[Micro], wanted: ReadsRows, data_rank: int, data_ranks: int
    ) -> Tensor:
        """Forward over the batches; see `engine.Engine.rows`. Collective over the world."""
        self._set_mode(training=False)
        rows = len(batches[0].sequences)
        found = torch.zeros(data_ranks, len(batches), rows, wanted.columns, device=self._device)

        def take(output: Tensor, inputs: ModelInputs, number: int) -> None:
            if self._mesh.tp.rank == 0:  # every tp rank has the same
                found[data_rank, number] = wanted.read(output, inputs)

        moved = (batch.to(self._device) for batch in batches)
        fed = (slice_inputs(wanted.inputs(one.tensors, one.sequences), self._mesh.cp) for one in moved)
        if self._pipeline is not None:
            every = list(fed)
            self._pipeline.evaluate(every, lambda output, number: take(output, every[number], number))
        else:
            (model,) = self._stages
            for number, inputs in enumerate(fed):
                take(model(inputs.x, **inputs.kwargs), inputs, number)
        if dist.is_initialized():
            dist.all_reduce(found)
        return found.cpu()

    def forget_compared(self) -> None:
        """Drop the rows of an evaluation that was not finished."""
        self._compared.clear()

    def _evaluate_comparing(
        self, comparison: Comparison, batches: Iterable[Micro], sums: Sums, *, last: bool
    ) -> None:
        if self._pipeline is not None:
            given = list(batches)
            self._pipeline.evaluate(
                [self._inputs(batch)[0] for batch in given],
                lambda output, number: self._compared.append(self._output(comparison, output, given[number])),
            )
        else:
            (model,) = self._stages
            for batch in batches:
                inputs, _ = self._inputs(batch)
                output = model(inputs.x, **inputs.kwargs)
                self._compared.append(self._output(comparison, output, batch))
        if not last:
            return
        seen, self._compared = self._compared, []
        if seen:
            found = comparison.compare(Outputs.joined(seen))
            if self._mesh.tp.rank == self._mesh.cp.rank == 0:
                sums.add(found.losses, found.counts, None)
                assert found.figures is not None
                sums.measure(found.figures)

    def _set_mode(self, *, training: bool) -> None:
        for module in self._stages:
            if module.training != training:  # `nn.Module.train` walks the whole model
                module.train(training)

    def _inputs(self, batch: Micro) -> tuple[ModelInputs, Tensor | None]:
        """(this rank's inputs of the model, the data source of each row where that is known)."""
        moved = batch.to(self._device)
        inputs = slice_inputs(self._objective.inputs(moved.tensors, moved.sequences), self._mesh.cp)
        return inputs, moved.tensors.get("source")
