"""How a tensor is cut into pieces, described once for all of them. No torch here.

A dim that is cut into (8, 64) is cut into 8 parts, and each of these into 64, by torch.chunk's rule: equal
parts, of which the last are smaller or empty. A piece takes one part of each dim. Pieces are numbered in
row-major order, empty ones included, so a rank of a mesh writes the piece of one number of all tensors that
are cut alike.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

from parallel.layout.cuts import shard_rows

Parts = tuple[tuple[int, ...], ...]
"""For each dim, into how many parts it is cut, the outermost cut first."""


def count(parts: Parts) -> int:
    """How many pieces there are, empty ones included."""
    return prod(prod(counts) for counts in parts)


def number_of(parts: Parts, whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> int | None:
    """Return the number of the piece at `offset` of shape `shape`; None where it is none of the pieces."""
    if not len(parts) == len(whole) == len(offset) == len(shape):
        return None
    number = 0
    for counts, size, start, length in zip(parts, whole, offset, shape, strict=True):
        for ranks in counts:
            each = -(-size // ranks)
            at = start // each if each else 0
            if at >= ranks:
                return None
            number = number * ranks + at
            start, size = start - at * each, min(each, size - at * each)
        if start or size != length:
            return None
    return number


def overlapping(
    parts: Parts, whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Yield (number, offset, shape) of each piece that shares an element with the block at `offset`."""
    by_dim = []
    for counts, size, low, length in zip(parts, whole, offset, shape, strict=True):
        starts, lengths = spans(size, counts)
        found = []
        for at in range(bisect_right(starts, low) - 1, len(starts)):
            if starts[at] >= low + length:
                break
            if starts[at] + lengths[at] > low and lengths[at]:
                found.append((at, starts[at], lengths[at]))
        by_dim.append(found)
    for places in product(*by_dim):
        number = 0
        for counts, (at, _, _) in zip(parts, places, strict=True):
            number = number * prod(counts) + at
        yield number, tuple(place[1] for place in places), tuple(place[2] for place in places)


@lru_cache(maxsize=4096)
def spans(size: int, counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return first index and length of each part of a dim of `size`, empty parts included."""
    found = [(0, size)]
    for ranks in counts:
        found = [
            (start + first, part)
            for start, length in found
            for first, part in (shard_rows(length, rank, ranks) for rank in range(ranks))
        ]
    return [start for start, _ in found], [length for _, length in found]


@lru_cache(maxsize=4096)
def filled(parts: Parts, whole: tuple[int, ...]) -> frozenset[int] | None:
    """Return the numbers of the pieces that hold an element; None where all do."""
    lengths = [spans(size, counts)[1] for counts, size in zip(parts, whole, strict=True)]
    if all(min(each) > 0 for each in lengths):
        return None
    return frozenset(number for number, each in enumerate(product(*lengths)) if all(each))
