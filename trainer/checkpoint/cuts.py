"""How a tensor is cut into pieces, described once for all of them. No torch here.

A dim that is cut into (8, 64) is cut into 8 parts, and each of these into 64, by torch.chunk's rule: equal
parts, of which the last are smaller or empty. A piece takes one part of each dim. Pieces are numbered in
row-major order, empty ones included, so a rank of a mesh writes the piece of one number of all tensors that
are cut alike.

Parts of one dim, of a tensor that has another number of dims, cut the flattened tensor, as DeepSpeed's ZeRO-3
does. A piece is then a run of elements, stored as its blocks (`parallel.layout.flat`).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

from parallel.layout.cuts import shard_rows
from parallel.layout.flat import chunk_bounds

Parts = tuple[tuple[int, ...], ...]
"""For each dim, or that of the flattened tensor, into how many parts it is cut, the outermost cut first."""


def is_flat(parts: Parts, whole: Sequence[int]) -> bool:
    """Whether the flattened tensor is cut."""
    return len(parts) == 1 != len(whole)


def count(parts: Parts) -> int:
    """How many pieces there are, empty ones included."""
    return prod(prod(counts) for counts in parts)


def number_of(parts: Parts, whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> int | None:
    """Return the number of the piece at `offset` of shape `shape`, or of which that is a block; None where it
    is none of the pieces.
    """
    if is_flat(parts, whole):
        first = first_element(whole, offset)
        starts, lengths = spans(prod(whole), parts[0])
        number = bisect_right(starts, first) - 1
        blocks = chunk_bounds(whole, starts[number], starts[number] + lengths[number])
        is_one = (tuple(offset), tuple(shape)) in ((block.offset, block.shape) for block in blocks)
        return number if is_one else None
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
    """Yield (number, offset, shape) of each piece that shares an element with the block at `offset`; of a
    flattened tensor's pieces, of each such block.
    """
    if is_flat(parts, whole):
        yield from _overlapping_flat(parts[0], whole, offset, shape)
        return
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


def _overlapping_flat(
    counts: tuple[int, ...], whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    if not prod(shape):
        return
    starts, lengths = spans(prod(whole), counts)
    first = first_element(whole, offset)
    last = first_element(whole, [low + length - 1 for low, length in zip(offset, shape, strict=True)])
    for number in range(bisect_right(starts, first) - 1, bisect_right(starts, last)):
        for block in chunk_bounds(whole, starts[number], starts[number] + lengths[number]):
            sides = zip(block.offset, block.shape, offset, shape, strict=True)
            if all(max(a, b) < min(a + n, b + m) for a, n, b, m in sides):
                yield number, block.offset, block.shape


def first_element(whole: Sequence[int], offset: Sequence[int]) -> int:
    """The index in the flattened tensor of the element at `offset`."""
    at = 0
    for size, low in zip(whole, offset, strict=True):
        at = at * size + low
    return at


def elements(parts: Parts, whole: Sequence[int], number: int) -> int:
    """How many elements the piece of this number has."""
    if is_flat(parts, whole):
        return spans(prod(whole), parts[0])[1][number]
    held = 1
    for counts, size in zip(reversed(parts), reversed(whole), strict=True):
        number, at = divmod(number, prod(counts))
        held *= spans(size, counts)[1][at]
    return held


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
    sizes = (prod(whole),) if is_flat(parts, whole) else whole
    lengths = [spans(size, counts)[1] for counts, size in zip(parts, sizes, strict=True)]
    if all(min(each) > 0 for each in lengths):
        return None
    return frozenset(number for number, each in enumerate(product(*lengths)) if all(each))
