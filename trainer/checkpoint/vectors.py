"""Vectors of tensors that are cut into equal parts, as DeepSpeed's ZeRO-1 and 2 do: what each rank wrote of
them → what the checkpoint holds. No torch here.

A rank describes the part that it wrote: which tensors have elements in it, and where each begins in the
vector. All ranks together describe a tensor as often as it has pieces, so joining them takes O(tensors +
ranks).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from trainer.checkpoint.manifest import TensorEntry
from trainer.checkpoint.pieces import cuts, owners
from trainer.checkpoint.pieces.cuts import Parts

_Row = tuple[str, str, tuple[int, ...], int]
"""(name, safetensors dtype, shape, first element in the vector) of a tensor."""


@dataclass(frozen=True)
class VectorShare:
    """What a rank wrote of a vector: of each tensor that has elements in one part, all of these.

    rank: the rank that wrote them.
    parts, each: into how many parts the vector is cut, and the elements of one.
    number: of the part.
    table: the tensors.
    """

    rank: int
    parts: Parts
    each: int
    number: int
    table: tuple[_Row, ...]

    def to_json(self) -> list[Any]:
        return [self.rank, self.parts, self.each, self.number, self.table]

    @classmethod
    def from_json(cls, values: list[Any]) -> "VectorShare":
        rank, parts, each, number, table = values
        rows = tuple((name, dtype, tuple(shape), first) for name, dtype, shape, first in table)
        return cls(rank, tuple(tuple(counts) for counts in parts), each, number, rows)


@dataclass
class _Tensor:
    """dtype, shape, first: of the row. cut: parts and each of its vector. numbers: of the pieces written."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    cut: tuple[Parts, int]
    numbers: list[int] = field(default_factory=list)


def merge_vectors(shares: Sequence[VectorShare]) -> dict[str, TensorEntry]:
    """Join what the ranks wrote. RuntimeError where a tensor is not tiled exactly once, or ranks disagree.

    Vectors with as many parts of one size share a rule of who wrote a part.
    """
    wrote: dict[tuple[Parts, int], dict[int, int]] = {}  # of a vector: number of the part → rank
    found: dict[str, _Tensor] = {}
    for share in shares:
        cut = (share.parts, share.each)
        rank = wrote.setdefault(cut, {}).setdefault(share.number, share.rank)
        if rank != share.rank:
            raise RuntimeError(
                f"tensor {share.table[0][0]}: part {share.number} of its vector was written by ranks {rank}"
                f" and {share.rank}: every element must be owned by exactly one rank"
            )
        for name, dtype, shape, first in share.table:
            tensor = found.setdefault(name, _Tensor(dtype, shape, first, cut))
            if (tensor.dtype, tensor.shape, tensor.first, tensor.cut) != (dtype, shape, first, cut):
                raise RuntimeError(
                    f"tensor {name}: ranks disagree about how it is cut, its type or its place in a vector:"
                    f" {tensor.dtype} {list(tensor.shape)} at {tensor.first} of parts of {tensor.cut[1]}"
                    f" elements, against {dtype} {list(shape)} at {first} of parts of {share.each}"
                )
            tensor.numbers.append(share.number)
    rules = {}
    for (parts, each), ranks in wrote.items():
        listed = [ranks.get(number, -1) for number in range(cuts.count(parts))]
        rules[parts, each] = owners.described(parts, listed, each)
    for name, tensor in found.items():
        _check_tiling(name, tensor)
    return {
        name: TensorEntry(one.dtype, one.shape, cut=rules[one.cut], first=one.first)
        for name, one in found.items()
    }


def _check_tiling(name: str, tensor: _Tensor) -> None:
    parts, each = tensor.cut
    expected = cuts.Stretch(tensor.first, each).parts(0, prod(tensor.shape))
    written = sorted(tensor.numbers)
    if written != list(expected) or expected.start < 0 or expected.stop > cuts.count(parts):
        raise RuntimeError(
            f"tensor {name}: it lies in parts {expected.start} to {expected.stop - 1} of a vector of"
            f" {cuts.count(parts)} parts, and {len(written)} pieces were written, of parts {written[0]} to"
            f" {written[-1]}: every element must be owned by exactly one rank"
        )
