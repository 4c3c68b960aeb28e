"""A rank's slice of a flattened parameter, and how a checkpoint stores it as chunks.

DeepSpeed flattens parameters and cuts the flat tensor where the ranks' slices end. A run of elements of a
flattened tensor is a few blocks of the tensor itself (`parallel.layout.flat`). So a slice becomes chunks
without a message or a copy. DeepSpeed's `safe_get_full_fp32_param` and its like would gather every tensor
on every rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from parallel.engine import Chunk
from parallel.layout.flat import chunk_bounds


@dataclass(frozen=True)
class MasterSlice:
    """This rank's slice of one parameter's master weights and moments: float32, flat, live memory.

    name: canonical, of the parameter.
    shape: of the whole parameter.
    start: the slice's first element in the flattened parameter.
    weight: the slice of the master weights, [elements].
    moments: the same of each moment, by state name.
    owned: this rank saves the slice.
    swap_group: ZeRO-3's group of state that was read from disk for this slice; None where nothing is on disk.
    cuts, stretch: how the flattened parameter is cut, or the vector that has it, as in `Chunk`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    moments: dict[str, Tensor]
    owned: bool
    swap_group: int | None = None
    cuts: tuple[tuple[int, ...], ...] = ()
    stretch: tuple[int, int] | None = None

    def chunks(self) -> Iterator[Chunk]:
        for prefix, flat in (
            ("model", self.weight),
            *((f"optim.{key}", moment) for key, moment in self.moments.items()),
        ):
            for block in chunk_bounds(self.shape, self.start, self.start + len(flat)):
                part = flat.narrow(0, block.first - self.start, prod(block.shape)).view(block.shape)
                name, place = f"{prefix}.{self.name}", block.offset
                yield Chunk(name, part, self.shape, place, self.owned, self.cuts, self.stretch)

    def fill(self, whole: Tensor) -> None:
        """Copy the slice's values out of the whole parameter."""
        self.weight.copy_(whole.flatten().narrow(0, self.start, len(self.weight)))

    def copy(self) -> "MasterSlice":
        moments = {key: moment.clone() for key, moment in self.moments.items()}
        return replace(self, weight=self.weight.clone(), moments=moments)

    def take(self, other: "MasterSlice") -> None:
        """Copy all values from another slice of the same place."""
        self.weight.copy_(other.weight)
        for key, moment in self.moments.items():
            moment.copy_(other.moments[key])
