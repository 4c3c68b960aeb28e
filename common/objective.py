"""What a model is trained for, as an engine sees it: batch → model inputs, output → a sum over a count.

Imports torch for types only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The target of a position that the loss leaves out: torch's own `ignore_index`."""


@dataclass(frozen=True)
class ModelInputs:
    """What the model is fed with. Dim 0 of every tensor is the row.

    Context parallelism gives each rank its part of every sequence, and so its part of these inputs.

    x: the first pipeline stage's input: what the model's first module takes, such as token ids [rows, seq].
        Dim 1 is the sequence.
    kwargs: what every stage gets by name, what only the loss needs included.
    sequence_dims: name in `kwargs` → the dim that is the sequence, of which each rank gets its part. Tensors
        that are not named are whole on every rank, such as those that attention compares over all tokens.
    places: names in `kwargs` that hold places in the sequence, int64 [rows, places], such as those that are
        predicted; negative: none. Each rank gets all of them, counted from the start of its part, with -1
        for those that are in another rank's part. So a count leaves out what is at a negative place.
    """

    x: Tensor
    kwargs: dict[str, Tensor]
    sequence_dims: Mapping[str, int] = field(default_factory=dict)
    places: frozenset[str] = frozenset()


class Objective(Protocol):
    """How a micro-batch becomes model inputs, and the model's output losses and counts (law 3).

    Both methods are pure: the same rows give the same inputs and the same loss on every rank. An objective
    that draws random numbers draws them in `inputs`, row by row, from (seed, the row's sequence number); see
    `trainer/objectives/draws.py`.
    """

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Return the model's inputs of one micro-batch.

        tensors: the batch by name, dim 0 is the row.
        sequences: the rows' global sequence numbers; -1 for a padding row.
        """
        ...

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return (losses, counts), each float32 [rows]: a row's summed loss in nats and its number of terms.

        The engine sums both over rows, micro-batches and ranks, and divides once. `output` is the last
        stage's, with one entry a row. A row's loss depends on that row alone.
        """
        ...
