"""Which source the n-th sequence of the stream comes from, and which sequence of that source it is.

The stream is cut into *segments* of constant weights; a new segment begins where the config changes the
weights (`data.stages`), and where a source has run out. A segment is cut into *periods* of B sequences:

    stream   |--------- segment 0: weights 2, 1 ---------|---- segment 1: weights 1, 1 ----
    periods  |    B    |    B    |    B    |    B    |
    sources   aabababaa baaabaaba ...                      quotas of 2/3 and 1/3, shuffled

After m periods of a segment, source i has had its quota: m·B·w_i, rounded by largest remainder, in exact
integers. B·w_i ≥ 1 keeps each quota from ever falling, so no share of a period is negative, and the count is
within one sequence of the exact one after every period. A keyed shuffle orders the sources inside a period.
The sequences of a source are numbered as they appear, by their *ordinal* in the source; so a change that
comes later leaves the stream before it as it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from data.stream.order import derive_key, permute
from data.stream.weights import integer_weights

MIN_PERIOD = 1024  # sequences
MAX_PERIOD = 1 << 20


@dataclass(frozen=True)
class MixtureSegment:
    """A part of the stream with constant weights.

    start: its first sequence.
    weights: integers, 0 for a source that takes no part, [sources].
    before: how many sequences each source has had before `start`, [sources].
    """

    start: int
    weights: tuple[int, ...]
    before: tuple[int, ...]

    @cached_property
    def period(self) -> int:
        """Sequences of a period: a power of two, in which the least weight has at least one."""
        least = min(weight for weight in self.weights if weight)
        return max(MIN_PERIOD, 1 << (-(-sum(self.weights) // least) - 1).bit_length())

    def quota(self, periods: int) -> list[int]:
        """Sequences that each source has had after so many periods of this segment: largest remainder."""
        total, whole = sum(self.weights), periods * self.period
        quotas = [whole * weight // total for weight in self.weights]
        remainders = [-(whole * weight % total) for weight in self.weights]
        for i in sorted(range(len(quotas)), key=remainders.__getitem__)[: whole - sum(quotas)]:
            quotas[i] += 1
        return quotas


class Mixture:
    """The segments of a stream. `length`: sequences until every source has run out; None: endless."""

    def __init__(self, segments: Sequence[MixtureSegment], length: int | None, key: int) -> None:
        self.segments = tuple(segments)
        self.length = length
        self._starts = [segment.start for segment in segments]
        # A method's cache would keep the mixture alive; this one dies with it.
        self._period = lru_cache(maxsize=16)(lambda s, m: period_order(self.segments[s], m, key))

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, ordinal in that source) of each global sequence number; int64, shaped as `numbers`.

        Raises ValueError past the end of a stream whose sources all have max_epochs.
        """
        largest = int(numbers.max()) if numbers.size else 0
        if self.length is not None and largest >= self.length:
            raise ValueError(
                f"sequence {largest} is past the end of the data: data.sources[].max_epochs allows "
                f"{self.length} sequences; train fewer steps or allow more epochs"
            )
        source, ordinal = np.empty_like(numbers), np.empty_like(numbers)
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        for s in np.unique(which).tolist():
            segment = self.segments[s]
            rows = np.flatnonzero(which == s)
            places = numbers[rows] - segment.start
            active = [i for i, weight in enumerate(segment.weights) if weight]
            if len(active) == 1:
                source[rows], ordinal[rows] = active[0], places + segment.before[active[0]]
                continue
            periods, inside = np.divmod(places, segment.period)
            for m in np.unique(periods).tolist():
                sources, ordinals = self._period(s, m)
                here = periods == m
                source[rows[here]] = sources[inside[here]]
                ordinal[rows[here]] = ordinals[inside[here]]
        return source, ordinal

    def counts(self, number: int) -> list[int]:
        """How many sequences of each source come before global sequence `number`."""
        s = bisect_right(self._starts, number) - 1
        return _counts(self.segments[s], number, lambda m: self._period(s, m)[0])


def period_order(segment: MixtureSegment, m: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, ordinal in the source) at each place of period m of a segment; int64 [period]."""
    before, after = segment.quota(m), segment.quota(m + 1)
    shares = np.array(after) - np.array(before)
    laid = np.repeat(np.arange(len(shares)), shares)
    sources = laid[permute(np.arange(segment.period), segment.period, derive_key(key, segment.start, m))]
    # A stable sort by source lists each source's places in order of appearance.
    ordinals = np.empty_like(sources)
    first = np.cumsum(shares) - shares
    base = np.array(segment.before) + np.array(before)
    ordinals[np.argsort(sources, kind="stable")] = np.arange(len(laid)) - first[laid] + base[laid]
    return sources, ordinals


def build(stages: Sequence[tuple[int, Sequence[float]]], caps: Sequence[int | None], key: int) -> Mixture:
    """The mixture of some stages.

    stages: (first sequence, weights [sources]) of each, the first at 0.
    caps: the sequences that each source has, None where it never runs out, [sources].
    key: of the shuffles inside periods.

    Raises ValueError where all weights are 0, or a source has less than one sequence in MAX_PERIOD.
    """
    segments: list[MixtureSegment] = []
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
            segments.append(MixtureSegment(at, live, tuple(base)))
            if segments[-1].period > MAX_PERIOD:
                raise ValueError(
                    f"data.sources: weights {list(weights)} give one source less than one sequence in "
                    f"{MAX_PERIOD}; give it more weight, or 0"
                )
            at = _runs_out(segments[-1], left, key)
    return Mixture(segments, None, key)


def _counts_at(segments: Sequence[MixtureSegment], number: int, key: int) -> list[int]:
    segment = segments[-1]
    return _counts(segment, number, lambda m: period_order(segment, m, key)[0])


def _counts(segment: MixtureSegment, number: int, sources_of: Callable[[int], np.ndarray]) -> list[int]:
    """Sequences of each source before `number`; `sources_of`: period → the sources in its order."""
    periods, inside = divmod(number - segment.start, segment.period)
    counts = [before + had for before, had in zip(segment.before, segment.quota(periods))]
    if inside:
        part = np.bincount(sources_of(periods)[:inside], minlength=len(counts))
        counts = [count + int(more) for count, more in zip(counts, part)]
    return counts


def _runs_out(segment: MixtureSegment, left: Sequence[int | None], key: int) -> int | None:
    """The number that follows the first source's last sequence; None if no source runs out.

    left: sequences that each source still has at the start of the segment, None: endless.
    """
    ends = []
    for i, (weight, n) in enumerate(zip(segment.weights, left)):
        if weight and n is not None:
            # The period in which source i has its n-th sequence: the first whose quota after it reaches n.
            low, high = 0, n * sum(segment.weights) // (weight * segment.period) + 2
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if segment.quota(middle + 1)[i] >= n else (middle + 1, high)
            sources, ordinals = period_order(segment, low, key)
            place = np.flatnonzero((sources == i) & (ordinals == segment.before[i] + n - 1))[0]
            ends.append(segment.start + low * segment.period + int(place) + 1)
    return min(ends, default=None)
