"""Which source the n-th sequence of the stream comes from, and which sequence of that source it is.

Time is cut into *segments* of constant weights: a stage begins one, a source that has run out begins one.
Inside a segment, after m blocks of B sequences source i has had its quota: m·B·w_i rounded by largest
remainder, in exact integers. B·w_i ≥ 1 keeps each quota from ever falling, so a block's share is never
negative and the count is within one sequence of the exact one at every block. A keyed shuffle orders the
sources inside a block, and a source's sequences are numbered as they appear; so whatever comes later, a
prefix of the stream stays what it was.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from data.stream.order import derive_key, permute

MIN_BLOCK = 1024
MAX_BLOCK = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream with constant weights.

    `start`: its first sequence. `weights`: integers, 0 for a source that takes no part. `base`: how many
    sequences each source has had before.
    """

    start: int
    weights: tuple[int, ...]
    base: tuple[int, ...]

    @cached_property
    def block(self) -> int:
        """Sequences between two quotas: a power of two in which the least weight has at least one."""
        least = min(weight for weight in self.weights if weight)
        return max(MIN_BLOCK, 1 << (-(-sum(self.weights) // least) - 1).bit_length())

    def quota(self, blocks: int) -> list[int]:
        """Sequences each source has had after `blocks` blocks of this segment: largest remainder, exact."""
        total, whole = sum(self.weights), blocks * self.block
        quotas = [whole * weight // total for weight in self.weights]
        remainders = [-(whole * weight % total) for weight in self.weights]
        for i in sorted(range(len(quotas)), key=remainders.__getitem__)[: whole - sum(quotas)]:
            quotas[i] += 1
        return quotas


class Mixture:
    """The segments of a stream. `length`: sequences until every source has run out; None: endless."""

    def __init__(self, segments: Sequence[Segment], length: int | None, key: int) -> None:
        self.segments = tuple(segments)
        self.length = length
        self._starts = [segment.start for segment in segments]
        # A method's cache would keep the mixture alive; this one dies with it.
        self._block = lru_cache(maxsize=16)(lambda s, m: block_order(self.segments[s], m, key))

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, which sequence of that source) of each global sequence number; int64, shaped as `numbers`.

        Raises ValueError past the end of a stream whose sources all have max_epochs.
        """
        largest = int(numbers.max()) if numbers.size else 0
        if self.length is not None and largest >= self.length:
            raise ValueError(
                f"sequence {largest} is past the end of the data: data.sources[].max_epochs allows "
                f"{self.length} sequences; train fewer steps or allow more epochs"
            )
        source, rank = np.empty_like(numbers), np.empty_like(numbers)
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        for s in np.unique(which).tolist():
            segment = self.segments[s]
            rows = np.flatnonzero(which == s)
            places = numbers[rows] - segment.start
            active = [i for i, weight in enumerate(segment.weights) if weight]
            if len(active) == 1:
                source[rows], rank[rows] = active[0], places + segment.base[active[0]]
                continue
            blocks, inside = np.divmod(places, segment.block)
            for m in np.unique(blocks).tolist():
                sources, ranks = self._block(s, m)
                here = blocks == m
                source[rows[here]] = sources[inside[here]]
                rank[rows[here]] = ranks[inside[here]]
        return source, rank

    def counts(self, number: int) -> list[int]:
        """How many sequences of each source come before global sequence `number`."""
        s = bisect_right(self._starts, number) - 1
        return _counts(self.segments[s], number, lambda m: self._block(s, m)[0])


def block_order(segment: Segment, m: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, rank within the source) at each place of block m of a segment; int64 [block]."""
    before, after = segment.quota(m), segment.quota(m + 1)
    shares = np.array(after) - np.array(before)
    laid = np.repeat(np.arange(len(shares)), shares)
    sources = laid[permute(np.arange(segment.block), segment.block, derive_key(key, segment.start, m))]
    # A stable sort by source lists each source's places in order of appearance.
    ranks = np.empty_like(sources)
    first = np.cumsum(shares) - shares
    base = np.array(segment.base) + np.array(before)
    ranks[np.argsort(sources, kind="stable")] = np.arange(len(laid)) - first[laid] + base[laid]
    return sources, ranks


Stages = Sequence[tuple[int, Sequence[float]]]


def build(stages: Stages, caps: Sequence[int | None], key: int) -> Mixture:
    """The mixture of (first sequence, weights) stages, the first at 0; `caps`: sequences each source has."""
    segments: list[Segment] = []
    bounds = [start for start, _ in stages[1:]] + [None]
    for (start, weights), bound in zip(stages, bounds):
        integers = integer_weights(weights)
        at: int | None = start
        while at is not None and (bound is None or at < bound):
            base = _counts_at(segments, at, key) if segments else [0] * len(caps)
            left = [None if cap is None else cap - had for cap, had in zip(caps, base)]
            live = tuple(0 if n == 0 else weight for weight, n in zip(integers, left))
            if not any(live):
                return Mixture(segments, at, key)
            segments.append(Segment(at, live, tuple(base)))
            if segments[-1].block > MAX_BLOCK:
                raise ValueError(
                    f"data.sources: weights {list(weights)} give one source less than one sequence in "
                    f"{MAX_BLOCK}; give it more weight, or 0"
                )
            at = _runs_out(segments[-1], left, key)
    return Mixture(segments, None, key)


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers in exactly the ratio of the weights as they are written in decimal."""
    fractions = [Fraction(repr(float(weight))) for weight in weights]
    if not any(fractions):
        raise ValueError(f"data.sources: the weights are all 0 ({list(weights)}); give one source more")
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * scale) for fraction in fractions]
    common = math.gcd(*integers)
    return [integer // common for integer in integers]


def _counts_at(segments: Sequence[Segment], number: int, key: int) -> list[int]:
    segment = segments[-1]
    return _counts(segment, number, lambda m: block_order(segment, m, key)[0])


def _counts(segment: Segment, number: int, sources_of: Callable[[int], np.ndarray]) -> list[int]:
    blocks, inside = divmod(number - segment.start, segment.block)
    counts = [base + had for base, had in zip(segment.base, segment.quota(blocks))]
    if inside:
        part = np.bincount(sources_of(blocks)[:inside], minlength=len(counts))
        counts = [count + int(more) for count, more in zip(counts, part)]
    return counts


def _runs_out(segment: Segment, left: Sequence[int | None], key: int) -> int | None:
    """The sequence after the one with which the first source runs out; None if none does."""
    ends = []
    for i, (weight, n) in enumerate(zip(segment.weights, left)):
        if weight and n is not None:
            # The block in which source i has its n-th sequence: the first whose quota after it reaches n.
            low, high = 0, n * sum(segment.weights) // (weight * segment.block) + 2
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if segment.quota(middle + 1)[i] >= n else (middle + 1, high)
            sources, ranks = block_order(segment, low, key)
            place = np.flatnonzero((sources == i) & (ranks == segment.base[i] + n - 1))[0]
            ends.append(segment.start + low * segment.block + int(place) + 1)
    return min(ends, default=None)
