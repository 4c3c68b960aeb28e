"""What the training loop sees of parallelism: an engine that steps, evaluates and names its pieces."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Micro(Protocol):
    """One micro-batch: named tensors whose dim 0 is the row, and the rows' global sequence numbers.

    tensors["source"], int64 [rows], where an engine adds up losses by source: which one each row is from.
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
    """What an engine asks of an optimiser over `LocalParameter`s.

    grad_scale: gradients are divided by it inside `step`. steps: updates done, settable. state: by parameter
    tensor, every tensor shaped as its parameter, there from the start.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    grad_scale: Tensor | None
    steps: int

    def step(self) -> Any: ...


@dataclass(frozen=True)
class Chunk:
    """One rank's piece of one named global tensor; the unit of the checkpoint format.

    `tensor` aliases the live memory: loading writes into it. Exactly one rank owns each piece.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    owned: bool


@dataclass(frozen=True)
class StepResult:
    """One optimiser step, the same on every rank.

    loss_sum, count: over the global batch, so the loss is loss_sum / count.
    grad_norm: of the mean loss, before clipping. skipped: nothing was updated, because a gradient was not
    finite, or because no target was counted (count 0: there is no loss to follow, nor is anything decayed).
    stop: some rank asked to stop. exchange: some rank asks for an exchange between all ranks before the next
    step. loss_scale: fp16's at this step, else 1. fault: why a skipped step is more than an overflow that a
    lower loss scale mends; what to do about it is the loop's decision. sources: (loss_sum, count) of each
    data source, where the engine was built for several.
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


@dataclass(frozen=True)
class Evaluation:
    """The sum of losses over what was evaluated, how many targets it is over, and whether some rank asked to
    stop; the same on every rank.
    """

    loss_sum: float
    count: float
    stop: bool


class Engine(Protocol):
    """One model on many devices. Every method is collective: all ranks call it in the same order."""

    @property
    def data_rank(self) -> int: ...
    @property
    def data_ranks(self) -> int: ...
    @property
    def is_first_of_data_rank(self) -> bool:
        """Whether this rank speaks for its data rank: of the ranks that read the same rows, exactly one."""

    def step(
        self, batches: Sequence[Micro], *, lr: float, stop: bool = False, exchange: bool = False
    ) -> StepResult: ...
    def evaluate(self, batches: Iterable[Micro], *, stop: bool = False) -> Evaluation: ...
    def chunks(self) -> list[Chunk]: ...
    def scalars(self) -> dict[str, Any]:
        """What a checkpoint keeps besides: `updates`, those made so far, and what the engine needs."""

    def load(self, scalars: dict[str, Any]) -> None: ...
    def close(self) -> None: ...
