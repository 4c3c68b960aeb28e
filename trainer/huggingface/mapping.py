"""Our parameters as parts of their tensors. Imports no torch.

`Mapped` is read in both directions: an import cuts our parameter out of their tensor, an export lays it into
it. A family's list of them, without copies, is a bijection between elements: each of ours, and each of
theirs, once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Mapped:
    """Rows of their tensor are our parameter.

    Their tensor, transposed where `transposed`, is taken as rows of our parameter's shape without its first
    dim: [rows, *shape[1:]]. Our parameter is `shape[0]` of these rows from row `first` on. So queries, keys
    and values that they keep in one tensor are three of these, and a convolution whose stride is its kernel
    is a matrix.

    ours: our parameter's name.
    shape: its shape.
    theirs: their tensor's name.
    whole: its shape.
    first: row of the first of our rows.
    transposed: their matrix is the transpose of ours: [in, out].
    copy: their tensor is written by an export, and not read by an import, which has ours from another.
    """

    ours: str
    shape: tuple[int, ...]
    theirs: str
    whole: tuple[int, ...]
    first: int = 0
    transposed: bool = False
    copy: bool = False

    @property
    def rows(self) -> int:
        """Rows of our parameter's width that their tensor has."""
        return prod(self.whole) // prod(self.shape[1:])


def same(ours: str, theirs: str, shape: Sequence[int]) -> Mapped:
    """Their tensor is our parameter."""
    return Mapped(ours, tuple(shape), theirs, tuple(shape))


def both(ours: str, theirs: str, shape: tuple[int, ...]) -> list[Mapped]:
    """A layer's weight of `shape`, and its bias."""
    return [
        same(f"{ours}.weight", f"{theirs}.weight", shape),
        same(f"{ours}.bias", f"{theirs}.bias", shape[:1]),
    ]


def reshaped(ours: str, shape: Sequence[int], theirs: str, whole: Sequence[int]) -> Mapped:
    """Their tensor has our parameter's elements in the same order, in another shape."""
    return Mapped(ours, tuple(shape), theirs, tuple(whole))


def stacked(
    ours: Sequence[str],
    heights: Sequence[int],
    width: Sequence[int],
    theirs: str,
    *,
    transposed: bool = False,
) -> list[Mapped]:
    """Their tensor is our parameters, one under the other: of `heights` rows each, and of one width, which is
    [] for biases.
    """
    whole = (sum(heights), *width)
    if transposed:
        whole = whole[::-1]
    found, first = [], 0
    for name, height in zip(ours, heights, strict=True):
        found.append(Mapped(name, (height, *width), theirs, whole, first, transposed and len(whole) > 1))
        first += height
    return found


def by_theirs(mapped: Iterable[Mapped]) -> dict[str, list[Mapped]]:
    """Their tensor's name → our parameters in it, in the order of its rows."""
    found: dict[str, list[Mapped]] = defaultdict(list)
    for one in mapped:
        found[one.theirs].append(one)
    return {name: sorted(parts, key=lambda part: part.first) for name, parts in found.items()}
