"""What the training loop sees of parallelism: an engine that steps, evaluates and lists its chunks.

One rank's part of a tensor has three types, from the inside out:

    ShardedParameter   (parallel.parameters) all data of the torch engine about a parameter on this rank: the
                       module's parameter, the memory that is updated, and how both are cut
      LocalParameter   what an optimiser needs of it: the memory, and where in the global tensor it is
      Chunk            what a checkpoint needs of it: a named block of memory, and which rank saves it

The torch engine makes one LocalParameter of each ShardedParameter when it is built. For a checkpoint it makes
Chunks of each: one of the weights, and one of every tensor of optimiser state. The DeepSpeed engine has no
ShardedParameters; it makes the other two from DeepSpeed's own tensors.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from common.objective import ReadsRows


class Micro(Protocol):
    """One micro-batch.

    tensors: by name; dim 0 is the row. "source", int64 [rows]: the data source of each row, where the engine
        adds up losses by source.
    sequences: the rows' global sequence numbers.
    """

    @property
    def tensors(self) -> dict[str, Tensor]: ...
    @property
    def sequences(self) -> tuple[int, ...]: ...
    def to(self, device: torch.device, non_blocking: bool = True) -> "Micro": ...


@dataclass(frozen=True)
class LocalParameter:
    """One rank's part of a parameter, as the optimiser factory gets it.

    name: canonical, the same on every layout.
    tensor: this rank's part, a plain tensor; its `.grad` holds the summed gradient at `step`.
    shape: of the global tensor.
    offset: of `tensor` in the global tensor.
    placement: two parameters with equal placements have one shape and are cut at the same places, on every
        rank. For optimisers of whole matrices (Muon), as is the next.
    map_whole: (parts of tensors with this placement, a function of a whole tensor) → the same parts of the
        function's results. Collective; one data rank computes each result.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    placement: Hashable
    map_whole: Callable[[Iterable[Tensor], Callable[[Tensor], Tensor]], Iterator[Tensor]]


class LocalOptimizer(Protocol):
    """What an engine needs of an optimiser over `LocalParameter`s.

    param_groups: as torch's; the engine sets "lr".
    state: parameter tensor → state by name, tensors of the parameter's shape that exist from the start.
    grad_scale: `step` divides gradients by this number.
    steps: updates done; can be set.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    grad_scale: Tensor | None
    steps: int

    def step(self) -> Any: ...


OptimizerFactory = Callable[[list[LocalParameter]], Any]
"""Returns a `LocalOptimizer`; loosely typed, so that a torch Optimizer passes for one."""


@dataclass(frozen=True)
class Chunk:
    """One rank's block of one named global tensor; the unit of the checkpoint format.

    name: PREFIX.NAME; the prefix is `model` or `optim.STATE`.
    tensor: the block, an alias of the live memory: loading writes into it.
    shape: of the global tensor.
    offset: of the block in the global tensor.
    owned: this rank saves the block. Exactly one rank owns each block.
    cuts: for each dim, into how many parts the global tensor is cut, the outermost cut first, each by
        torch.chunk's rule: (8, 64) is 8 parts and each of these in 64. Of one dim where the tensor has
        others: so is the flattened tensor cut, and the block is one of those of a part (`layout.flat`).
        Empty: no such rule, or whole.
    stretch: (first, each): the flattened tensor is part of a vector, from its element `first`, and the vector
        is cut into parts of `each` elements, as many as `cuts` says for its one dim. The block is one of
        those that a part has of the tensor. None: no such vector.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    owned: bool
    cuts: tuple[tuple[int, ...], ...] = ()
    stretch: tuple[int, int] | None = None


@runtime_checkable
class KeepsOnDisk(Protocol):
    """An engine whose state may be on a disk, from where a save streams it."""

    def batches(self) -> Iterator[list[Chunk]] | None:
        """All chunks, as many at a time as are in memory together: a batch is valid until the next is asked
        for. None: all state is in memory, and `chunks` has it.
        """


@dataclass(frozen=True)
class StepResult:
    """One optimiser step, the same on every rank.

    loss_sum: over the global batch, in nats.
    count: targets counted in the global batch, by their weights; the loss is loss_sum / count.
    grad_norm: of the mean loss, before clipping.
    skipped: nothing was updated: a gradient was not finite, or no target was counted (with count 0 there is
        no loss to follow, and nothing is decayed either).
    stop: some rank was asked to stop.
    loss_scale: fp16's at this step, else 1.
    fault: why a skipped step is more than an overflow that a lower loss scale cures; empty otherwise. The
        loop decides what to do about a fault.
    exchange: some rank asks for an exchange between all ranks before the next step.
    sources: (loss_sum, count) of each data source, where the engine was built for several.
    unweighted: targets of the global batch, each counted as 1; None: as `count`.
    """

    loss_sum: float
    count: float
    grad_norm: float
    skipped: bool
    stop: bool
    loss_scale: float
    fault: str = ""
    exchange: bool = False
    sources: tuple[tuple[float, float], ...] = ()
    unweighted: float | None = None

    @property
    def targets(self) -> int:
        """How many targets the global batch had."""
        return round(self.count if self.unweighted is None else self.unweighted)


@dataclass(frozen=True)
class Evaluation:
    """A pass over evaluation batches, the same on every rank.

    loss_sum: over all targets that were evaluated, in nats.
    count: the number of these targets.
    stop: some rank was asked to stop.
    measures: name → (sum, count) of each further figure of the objective; see `common.objective.Measures`.
    """

    loss_sum: float
    count: float
    stop: bool
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Engine(Protocol):
    """One model on many devices. Every method is collective: all ranks call it in the same order."""

    @property
    def data_rank(self) -> int:
        """Which part of the global batch this rank reads."""

    @property
    def data_ranks(self) -> int:
        """The number of parts that the global batch is divided into."""

    @property
    def is_first_of_data_rank(self) -> bool:
        """Whether this rank records what its data rank reads: one of the ranks that read the same rows."""

    @property
    def axes(self) -> Mapping[str, str]:
        """Name of a process group → its mesh axis, for `messages.comms.CommCounter`. Empty: not known."""

    def step(
        self, batches: Sequence[Micro], *, lr: float, stop: bool = False, exchange: bool = False
    ) -> StepResult:
        """Forward, backward and update over the global batch.

        batches: this data rank's micro-batches of it.
        lr: the learning rate of this step.
        stop, exchange: of this rank; the result has them of all ranks.
        """

    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False, last: bool = True) -> Evaluation:
        """Forward over the batches of all data ranks, each of which must have equally many.

        last: no more batches of the same held-out set follow. An objective that compares rows compares those
            of all calls up to the last: the calls before it return sums of 0. A request to stop drops them.
        """

    def rows(self, batches: Sequence[Micro], wanted: ReadsRows) -> Tensor:
        """Return what `wanted` reads of the rows of all data ranks, in evaluation.

        batches: of this data rank. All data ranks give as many batches, all of as many rows.

        Returns float32 [data ranks, batches, rows, columns] in the host's memory, the same on every rank.
        """

    def chunks(self) -> list[Chunk]:
        """Weights and optimiser state of this rank, of the parameters that are trained: what a checkpoint
        holds.
        """

    def frozen(self) -> list[Chunk]:
        """Weights of this rank that are not trained (`ModelPlan.trained`). No checkpoint holds them: whoever
        loads one fills them from the weights that the run began with.
        """

    def scalars(self) -> dict[str, Any]:
        """What a checkpoint keeps besides chunks: `updates`, the number of updates, and the engine's own."""

    def load(self, scalars: dict[str, Any]) -> None:
        """Continue from saved `scalars`, once the chunks have been filled with the saved ones."""

    def close(self) -> None:
        """Release the model. The process group is the runtime's."""
