"""Parameters that are kept somewhere, by our names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Protocol

from torch import Tensor

from trainer.models.config import ModelConfig
from trainer.ranks import Ranks

BLOCK_BYTES = 32 << 20
"""What is read at a time, as float32: so much memory a reader needs beside the result."""


class WeightSource(Protocol):
    """A model's parameters on disk."""

    @property
    def where(self) -> str:
        """What it is, for messages: a folder, or a run's checkpoint."""
        ...

    @property
    def model(self) -> ModelConfig:
        """The config of the model."""
        ...

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of each parameter, as a model of ours has it."""
        ...

    @property
    def besides(self) -> Sequence[str]:
        """Names, as the source has them, of tensors that are no parameter of ours."""
        ...

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return a block of a parameter, in the dtype in which it is kept: to copy from, never to write to.
        Where the block lies in one piece, the result is a view of a mapped file.
        """
        ...

    def forget(self) -> None:
        """Give back the memory of what was read so far."""

    def check(self) -> None:
        """RuntimeError where a file was written to while it was read."""

    def digest(self, ranks: Ranks) -> str:
        """Return a hash of all that the source keeps, in hexadecimal; ranks share the work. Collective."""
        ...


def blocks(shape: Sequence[int], offset: Sequence[int]) -> Iterator[tuple[slice, list[int], list[int]]]:
    """Cut a block of a parameter along dim 0 into blocks of about BLOCK_BYTES.

    Yields the rows, as a slice of the block, and offset and shape of each in the parameter.
    """
    rows = max(1, BLOCK_BYTES // max(1, 4 * prod(shape[1:])))
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        yield slice(first, last), [offset[0] + first, *offset[1:]], [last - first, *shape[1:]]
