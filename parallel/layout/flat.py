"""A run of elements of a flattened tensor as blocks of the tensor. Torch-free.

Elements [2, 9) of one of shape [4, 3], for instance:

    .  .  2        one element of row 0
    3  4  5        rows 1 and 2
    6  7  8
    .  .  .
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class ChunkBounds:
    """The place of a block whose elements are consecutive in the flattened tensor.

    offset, shape: of the block in the tensor.
    first: the block's first element in the flattened tensor.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    first: int


def chunk_bounds(shape: Sequence[int], start: int, stop: int) -> Iterator[ChunkBounds]:
    """Elements [start, stop) of a flattened tensor as blocks of the tensor, in order: at most 2·dims - 1."""
    if start >= stop:
        return
    if not shape:
        yield ChunkBounds((), (), start)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # inside one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        zeros = (0,) * (len(shape) - 1)
        yield ChunkBounds((first, *zeros), (last - first, *shape[1:]), first * row)
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> Iterator[ChunkBounds]:
    base = index * prod(shape[1:])
    for block in chunk_bounds(shape[1:], start - base, stop - base):
        yield ChunkBounds((index, *block.offset), (1, *block.shape), base + block.first)
