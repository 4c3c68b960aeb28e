"""What a model is trained for: how a batch becomes inputs, and a model's output a sum over a count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ModelInputs:
    """x goes to the first pipeline stage, kwargs to every stage. Dim 0 of every tensor is the row.

    x is whatever the model's first module takes: token ids, pixels. A second input (the text beside an image)
    is one of kwargs, and so is what only the loss needs.
    """

    x: Tensor
    kwargs: dict[str, Tensor]


class Objective(Protocol):
    """Pure: the same batch gives the same inputs and the same loss, on whatever rank it is computed.

    Whatever is random (masks, noise, which sentence follows) is drawn in `inputs`, row by row, from (seed,
    sequence number): an objective that needs the seed is built with it.
    """

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """The model's inputs of one micro-batch. `sequences`: the rows' global numbers, -1 for padding."""
        ...

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """(losses, counts), float32 [rows]: a row's summed loss in nats, and how many things it is a sum of.

        The engine adds both over rows, micro-batches and ranks, and divides once. `output` is the last
        stage's, with one entry a row. Several losses (masked tokens, next sentence) are one sum with fixed
        weights, over one count. A loss in which the rows of the global batch see each other (contrastive) is
        a sum over rows too, given every row's output: an engine gathers those in a first pass without
        gradients, and the objective takes them as one of kwargs.
        """
        ...
