"""What a model is trained for, as an engine sees it: batch → model inputs, output → a sum over a count.

Imports torch for types only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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
    kwargs: the keyword arguments of every stage's `forward`, and tensors that only the loss reads.
    sequence_dims: name in `kwargs` → the dim that is the sequence, of which each rank gets its part. Tensors
        that are not named are whole on every rank, such as those that attention compares over all tokens.
    places: names in `kwargs` that hold places in the sequence, int64 [rows, places], such as those that are
        predicted; a negative entry is no place. Each rank gets all entries, counted from the start of its
        part, and -1 for places in another rank's part: losses and counts leave out negative entries.
    """

    x: Tensor
    kwargs: dict[str, Tensor]
    sequence_dims: Mapping[str, int] = field(default_factory=dict)
    places: frozenset[str] = frozenset()


class Objective(Protocol):
    """How a micro-batch becomes the model's inputs, and how the model's output becomes losses and counts (law
    3).

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


@runtime_checkable
class Measures(Protocol):
    """An objective that an evaluation measures by more than its loss: accuracy, for instance.

    measures: names of the figures.
    """

    @property
    def measures(self) -> tuple[str, ...]: ...

    def measure(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """Return float [measures, 2]: of each figure the sum and the count over the rows of a micro-batch.
        The engine sums both over all batches and ranks; the figure is the quotient. Arguments as of
        `Objective.loss`.
        """
        ...


@runtime_checkable
class TakesFeatures(Protocol):
    """An objective whose model gives several numbers a row: logits of classes, or predicted pixels."""

    def features(self, inputs: ModelInputs) -> int:
        """Return the number of features of a row: the model's output is float32 [rows, features]. Without
        this method it is [rows], one loss for each row.
        """
        ...


@runtime_checkable
class WeighsTargets(Protocol):
    """An objective whose counts are sums of weights, such as those of classes."""

    def targets(self, inputs: ModelInputs) -> Tensor:
        """Return float32 [rows]: the number of each row's targets, every one counted as 1."""
        ...


@runtime_checkable
class ComparesRows(Protocol):
    """An objective whose loss compares the rows of the whole global batch: contrastive ones.

    An objective implements it beside `Objective` by having its methods. The model's output is float
    [rows, features]: a row's embeddings and, in further columns, the row's copies of learnt numbers such as a
    temperature, so that their gradients come back through the output too. Under context parallelism a row's
    output is the sum of the ranks' outputs. The engine calls `loss_of_rows` with the outputs of all rows, in
    place of `Objective.loss`; the loss of a step depends on neither micro-batches nor ranks. The engine takes
    the gradient with respect to all outputs, so `loss_of_rows` must not detach any.

    measures: names of the figures of an evaluation, beside the loss.
    """

    @property
    def measures(self) -> tuple[str, ...]: ...

    def counted(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> Tensor:
        """Return bool [rows]: whether a row takes part, as an anchor and as a negative; no padding does.
        Arguments as of `Objective.inputs`.
        """
        ...

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return (losses, counts) of some rows against all, each float32 [n]; see `Objective.loss`.

        mine: outputs [n, features] of rows first … first + n - 1 of the global batch.
        every: outputs [G, features] of all its rows.
        counted: bool [G]; a row that is not counted has loss 0 and count 0, and is no row's negative.
        first: the number of the first row of `mine` in `every`.
        """
        ...

    def measure_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> Tensor:
        """Return float [measures, 2]: of each figure the sum and the count over the rows `mine`. Arguments as
        of `loss_of_rows`.
        """
        ...

    def bounded(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the whole loss with respect to `rows`, each [n, features], without what
        would move a learnt number out of its bounds.
        """
        ...


class ReadsRows(Protocol):
    """What is wanted of each row of a trained model apart, not of a sum over rows: the log-likelihood of a
    text, logits of classes, an embedding. See `Engine.rows`.

    columns: how many numbers are read of a row.
    """

    @property
    def columns(self) -> int: ...

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """As of `Objective.inputs`."""
        ...

    def read(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """Return float [rows, columns]. Where ranks share a sequence (context parallelism), the sum of the
        ranks' results is what is read of a row.

        output: of the model in evaluation.
        """
        ...


def measures_of(objective: Objective) -> tuple[str, ...]:
    """Return the names of the figures of an evaluation, beside the loss."""
    return objective.measures if isinstance(objective, (Measures, ComparesRows)) else ()
