"""Forward and backward of one step's micro-batches on this rank, through a pipeline or one module."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.objective import ModelInputs, Objective
from parallel.engine import Micro
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
    ) -> None:
        self._stages, self._pipeline, self._objective = stages, pipeline, objective
        self._reductions, self._gradients = reductions, gradients
        self._mesh, self._device = mesh, device

    def train(self, batches: Sequence[Micro], sums: Sums, factor: float) -> None:
        """Backward of factor × loss over the micro-batches; add their losses to `sums`."""

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

    def evaluate(self, batches: Iterable[Micro], sums: Sums) -> None:
        """Forward over the batches; add their losses to `sums`."""
        self._set_mode(training=False)

        def take(output: Tensor, inputs: ModelInputs) -> None:
            # Every tp rank has computed the same loss, which counts once; in training `TorchEngine._reduce`
            # sees to that.
            if self._mesh.tp.rank == 0:
                sums.add(*self._objective.loss(output, inputs), None)

        if self._pipeline is not None:
            all_inputs = [self._inputs(batch)[0] for batch in batches]
            self._pipeline.evaluate(all_inputs, lambda output, number: take(output, all_inputs[number]))
        else:
            (model,) = self._stages
            for batch in batches:
                inputs, _ = self._inputs(batch)
                take(model(inputs.x, **inputs.kwargs), inputs)

    def _set_mode(self, *, training: bool) -> None:
        for module in self._stages:
            if module.training != training:  # `nn.Module.train` walks the whole model
                module.train(training)

    def _inputs(self, batch: Micro) -> tuple[ModelInputs, Tensor | None]:
        """(this rank's inputs of the model, the data source of each row where that is known)."""
        moved = batch.to(self._device)
        inputs = slice_inputs(self._objective.inputs(moved.tensors, moved.sequences), self._mesh.cp)
        return inputs, moved.tensors.get("source")
