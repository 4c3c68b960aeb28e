"""Mean, standard deviation, largest magnitude and zeros of values that are spread over batches and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PART_ELEMENTS = 1 << 24
"""Looked at together: a GPU makes a copy in float64 of what it takes a norm of."""


@dataclass
class Moments:
    """Sums over values, from which their statistics follow whatever way the values were divided.

    count: of the values.
    total: their sum.
    squares: the sum of their squares.
    largest: the largest magnitude.
    zeros: how many are 0.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    zeros: int = 0

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Return the moments of a tensor, summed in float64. Waits for the device."""
        values = values.detach().flatten()
        if not values.numel():
            return cls()
        found = torch.stack([_sums(part) for part in values.split(PART_ELEMENTS)])
        total, squares, _, zeros = found.sum(dim=0).tolist()
        return cls(values.numel(), total, squares, found[:, 2].max().item(), int(zeros))

    def add(self, other: Moments) -> None:
        """Count the values of `other` too."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        # `max` would drop a NaN that is its second argument.
        self.largest = math.nan if math.isnan(other.largest) else max(self.largest, other.largest)
        self.zeros += other.zeros

    def scaled(self, factor: float) -> Moments:
        """Return the moments of the values × factor."""
        return Moments(
            self.count,
            self.total * factor,
            self.squares * factor * factor,
            self.largest * abs(factor),
            self.zeros,
        )

    @property
    def finite(self) -> bool:
        """Whether every value is: a sum of squares in float64 overflows for no value of a narrower type."""
        return math.isfinite(self.squares)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """The standard deviation of the values themselves, not of a sample: divided by their count."""
        if not self.count:
            return math.nan
        variance = self.squares / self.count - self.mean**2
        if not math.isfinite(variance):
            return math.nan
        # A smaller one is the rounding of the two sums: values that are all equal in float32.
        return math.sqrt(variance) if variance > 1e-14 * self.squares / self.count else 0.0

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares) if self.finite else math.nan

    @property
    def zero_fraction(self) -> float:
        return self.zeros / self.count if self.count else math.nan


def _sums(values: Tensor) -> Tensor:
    """(sum, sum of squares, largest magnitude, zeros) of a flat tensor, float64 [4]."""
    low, high = values.aminmax()
    return torch.stack(
        (
            values.sum(dtype=torch.float64),
            torch.linalg.vector_norm(values, dtype=torch.float64).square(),
            torch.maximum(low.abs(), high.abs()).double(),
            values.numel() - values.count_nonzero().double(),
        )
    )
