"""How a tensor is cut into pieces, described once for all of them. No torch here.

A dim that is cut into (8, 64) is cut into 8 parts, and each of these into 64, by torch.chunk's rule: equal
parts, of which the last are smaller or empty. A piece takes one part of each dim. Pieces are numbered in
row-major order, empty ones included, so a rank of a mesh writes the piece of one number of all tensors that
are cut alike.

Parts of one dim, of a tensor that has another number of dims, cut the flattened tensor, as DeepSpeed's ZeRO-3
does. A piece is then a run of elements, stored as its blocks (`parallel.layout.flat`).

With a `Stretch` the flattened tensor is part of a vector, and the vector is cut, as DeepSpeed's ZeRO-1 and 2
do. A piece is what a part of the vector has of the tensor, and has the part's number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from parallel.layout.cuts import shard_rows
from parallel.layout.flat import chunk_bounds

Parts = tuple[tuple[int, ...], ...]
"""For each dim, or that of the flattened tensor, into how many parts it is cut, the outermost cut first."""


@dataclass(frozen=True)
class Stretch:
    """The place of a flattened tensor in a vector of several tensors, which is cut into equal parts. A part
    may end inside the tensor, or hold all of it.

    first: the tensor's first element in the vector.
    each: elements of a part of the vector.
    """

    first: int
    each: int

    def part(self, number: int, elements: int) -> tuple[int, int]:
        """Return first index and length, in a flattened tensor of `elements`, of what a part has of it."""
        start = min(max(number * self.each - self.first, 0), elements)
        stop = min(max((number + 1) * self.each - self.first, 0), elements)
        return start, stop - start

    def parts(self, low: int, high: int) -> range:
        """Return the numbers of the parts that have an element of [low, high) of the flattened tensor."""
        if low >= high:
            return range(0)
        return range((self.first + low) // self.each, (self.first + high - 1) // self.each + 1)


def is_flat(parts: Parts, whole: Sequence[int]) -> bool:
    """Whether the flattened tensor is cut."""
    return len(parts) == 1 != len(whole)


def count(parts: Parts) -> int:
    """How many pieces there are, empty ones included."""
    return prod(prod(counts) for counts in parts)


def number_of(
    parts: Parts,
    whole: Sequence[int],
    offset: Sequence[int],
    shape: Sequence[int],
    stretch: Stretch | None = None,
) -> int | None:
    """Return the number of the piece at `offset` of shape `shape`, or of which that is a block; None where it
    is none of the pieces.
    """
    if stretch or is_flat(parts, whole):
        at = first_element(whole, offset)
        ((number, start, length),) = _flat_within(parts, prod(whole), at, at + 1, stretch)
        if number not in range(count(parts)):
            return None
        blocks = chunk_bounds(whole, start, start + length)
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
    parts: Parts,
    whole: Sequence[int],
    offset: Sequence[int],
    shape: Sequence[int],
    stretch: Stretch | None = None,
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Yield (number, offset, shape) of each piece that shares an element with the block at `offset`; of a
    flattened tensor's pieces, of each such block.
    """
    if stretch or is_flat(parts, whole):
        yield from _overlapping_flat(parts, whole, offset, shape, stretch)
        return
    by_dim = [
        _parts_within(size, counts, low, low + length)
        for counts, size, low, length in zip(parts, whole, offset, shape, strict=True)
    ]
    for places in product(*by_dim):
        number = 0
        for counts, (at, _, _) in zip(parts, places, strict=True):
            number = number * prod(counts) + at
        yield number, tuple(place[1] for place in places), tuple(place[2] for place in places)


def _overlapping_flat(
    parts: Parts,
    whole: Sequence[int],
    offset: Sequence[int],
    shape: Sequence[int],
    stretch: Stretch | None,
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    if not prod(shape):
        return
    first = first_element(whole, offset)
    last = first_element(whole, [low + length - 1 for low, length in zip(offset, shape, strict=True)])
    for number, start, length in _flat_within(parts, prod(whole), first, last + 1, stretch):
        for block in chunk_bounds(whole, start, start + length):
            sides = zip(block.offset, block.shape, offset, shape, strict=True)
            if all(max(a, b) < min(a + n, b + m) for a, n, b, m in sides):
                yield number, block.offset, block.shape


def first_element(whole: Sequence[int], offset: Sequence[int]) -> int:
    """The index in the flattened tensor of the element at `offset`."""
    at = 0
    for size, low in zip(whole, offset, strict=True):
        at = at * size + low
    return at


def elements(parts: Parts, whole: Sequence[int], number: int, stretch: Stretch | None = None) -> int:
    """How many elements the piece of this number has."""
    if stretch:
        return stretch.part(number, prod(whole))[1]
    if is_flat(parts, whole):
        return span(prod(whole), parts[0], number)[1]
    held = 1
    for counts, size in zip(reversed(parts), reversed(whole), strict=True):
        number, at = divmod(number, prod(counts))
        held *= span(size, counts, at)[1]
    return held


def span(size: int, counts: Sequence[int], number: int) -> tuple[int, int]:
    """Return first index and length of one part of a dim of `size`."""
    places = []
    for ranks in reversed(counts):
        number, at = divmod(number, ranks)
        places.append(at)
    start = 0
    for ranks, at in zip(counts, reversed(places), strict=True):
        first, size = shard_rows(size, at, ranks)
        start += first
    return start, size


def _flat_within(
    parts: Parts, size: int, low: int, high: int, stretch: Stretch | None
) -> list[tuple[int, int, int]]:
    """As `_parts_within`, of the pieces of a flattened tensor of `size`."""
    if stretch is None:
        return _parts_within(size, parts[0], low, high)
    return [(number, *stretch.part(number, size)) for number in stretch.parts(low, high)]


def _parts_within(size: int, counts: Sequence[int], low: int, high: int) -> list[tuple[int, int, int]]:
    """Return (number, first index, length) of each part of a dim of `size` that shares an index with
    [low, high).
    """
    found = [(0, 0, size)] if low < min(high, size) else []
    for ranks in counts:
        deeper = []
        for number, start, length in found:
            each = -(-length // ranks)
            first, last = max(low - start, 0) // each, (min(high - start, length) - 1) // each
            for at in range(first, last + 1):
                deeper.append((number * ranks + at, start + at * each, min(each, length - at * each)))
        found = deeper
    return found


@lru_cache(maxsize=64)
def spans(size: int, counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return first index and length of each part of a dim of `size`, empty parts included. For rank 0: all
    parts are as many as there are ranks.
    """
    found = [(0, size)]
    for ranks in counts:
        found = [
            (start + first, part)
            for start, length in found
            for first, part in (shard_rows(length, rank, ranks) for rank in range(ranks))
        ]
    return [start for start, _ in found], [length for _, length in found]


@lru_cache(maxsize=64)
def filled(parts: Parts, whole: tuple[int, ...]) -> frozenset[int] | None:
    """Return the numbers of the pieces that hold an element; None where all do. For rank 0, as `spans`."""
    sizes = (prod(whole),) if is_flat(parts, whole) else whole
    lengths = [spans(size, counts)[1] for counts, size in zip(parts, sizes, strict=True)]
    if all(min(each) > 0 for each in lengths):
        return None
    return frozenset(number for number, each in enumerate(product(*lengths)) if all(each))
