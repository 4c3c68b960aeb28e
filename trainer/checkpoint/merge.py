"""What each rank wrote → what the checkpoint holds. No torch here.

A rank describes its pieces of equally cut tensors together: their number, and the list of tensors. Ranks of
one mesh have the same list, which is passed on once, so joining all parts takes O(tensors + ranks). So does
joining parts of a vector of tensors (`vectors`), of which each rank describes the tensors that its part has.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import orjson

from trainer.checkpoint.manifest import TensorEntry, tensor_of
from trainer.checkpoint.pieces import cuts, owners
from trainer.checkpoint.pieces.cuts import Parts
from trainer.checkpoint.pieces.files import FileEntry, digest
from trainer.checkpoint.pieces.owners import Cut
from trainer.checkpoint.vectors import VectorShare, merge_vectors

Table = tuple[tuple[str, str, tuple[int, ...]], ...]
"""(name, safetensors dtype, shape) of tensors that are cut alike."""


@dataclass(frozen=True)
class Share:
    """A rank's pieces of tensors that are cut alike: of each, the piece of one number.

    rank: the rank that wrote them.
    parts, number: how the tensors are cut, and which piece: see `cuts`.
    table: the tensors.
    digest: of the table.
    """

    rank: int
    parts: Parts
    number: int
    table: Table
    digest: str

    @classmethod
    def of(cls, rank: int, parts: Parts, number: int, table: Table) -> "Share":
        return cls(rank, parts, number, table, digest(encode_table(table)))


def encode_table(table: Table) -> bytes:
    return orjson.dumps(table)


def decode_table(data: bytes) -> Table:
    return tuple((name, dtype, tuple(shape)) for name, dtype, shape in orjson.loads(data))


@dataclass(frozen=True)
class Part:
    """What one rank wrote: its files, its shares, also of vectors, and the pieces of other tensors one by
    one.
    """

    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]
    shares: tuple[Share, ...] = ()
    vectors: tuple[VectorShare, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the shares' tables, which are passed on by their digests."""
        return {
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "tensors": {
                name: {
                    "dtype": entry.dtype,
                    "shape": entry.shape,
                    "pieces": [{"file": one.files[0], **_place(one)} for one in entry.pieces],
                }
                for name, entry in self.tensors.items()
            },
            "shares": [[one.rank, one.parts, one.number, one.digest] for one in self.shares],
            "vectors": [one.to_json() for one in self.vectors],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], table: Callable[[str], Table]) -> "Part":
        """table: digest → the table of tensors."""
        return cls(
            {name: FileEntry(**entry) for name, entry in values["files"].items()},
            {name: tensor_of(entry) for name, entry in values["tensors"].items()},
            tuple(
                Share(rank, tuple(tuple(counts) for counts in parts), number, table(key), key)
                for rank, parts, number, key in values["shares"]
            ),
            tuple(VectorShare.from_json(one) for one in values["vectors"]),
        )


def _place(piece: Any) -> dict[str, Any]:
    return {"key": piece.key, "shape": piece.shape, "offset": piece.offset}


def merge(parts: Sequence[Part]) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Join the ranks' parts: files and tensors. RuntimeError where a tensor is not tiled exactly once, for
    that would load as garbage.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        if double := files.keys() & part.files.keys():
            raise RuntimeError(f"checkpoint file {min(double)} was written by two ranks")
        files |= part.files
        for name, entry in part.tensors.items():
            seen = tensors.get(name)
            if seen:
                _agree(name, seen, entry)
            pieces = (seen.pieces if seen else ()) + entry.pieces
            tensors[name] = TensorEntry(entry.dtype, entry.shape, pieces)
    for name, entry in tensors.items():
        _check_tiling(name, entry)
    cut = _merge_shares([share for part in parts for share in part.shares])
    for found in (cut, merge_vectors([share for part in parts for share in part.vectors])):
        if double := tensors.keys() & found.keys():
            raise RuntimeError(f"tensor {min(double)}: ranks disagree about how it is cut")
        tensors |= found
    return files, tensors


def _agree(name: str, one: TensorEntry, other: TensorEntry) -> None:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise RuntimeError(
            f"tensor {name}: ranks disagree: {one.dtype} {list(one.shape)}"
            f" against {other.dtype} {list(other.shape)}"
        )


def _merge_shares(shares: Sequence[Share]) -> dict[str, TensorEntry]:
    """Where ranks have different tables, as where they own different tensors, a tensor is in several."""
    owned: dict[tuple[Parts, str], dict[int, int]] = {}  # piece → rank
    tables: dict[tuple[Parts, str], Table] = {}
    for share in shares:
        alike = (share.parts, share.digest)
        tables[alike] = share.table
        rank = owned.setdefault(alike, {}).setdefault(share.number, share.rank)
        if rank != share.rank:
            raise RuntimeError(_twice(share.table[0][0], share.number, rank, share.rank))
    found: dict[str, tuple[TensorEntry, tuple[tuple[Parts, str], ...]]] = {}
    for alike, table in tables.items():
        for name, dtype, shape in table:
            entry, before = found.get(name, (TensorEntry(dtype, shape), ()))
            _agree(name, entry, TensorEntry(dtype, shape))
            if before and before[0][0] != alike[0]:
                raise RuntimeError(f"tensor {name}: ranks disagree about how it is cut")
            found[name] = entry, (*before, alike)
    joined: dict[tuple[tuple[Parts, str], ...], tuple[list[int], Cut]] = {}
    whole: set[tuple[int, tuple[int, ...]]] = set()
    tensors = {}
    for name, (entry, places) in found.items():
        if places not in joined:
            ranks = _join(name, places[0][0], [owned[alike] for alike in places])
            joined[places] = ranks, owners.described(places[0][0], ranks)
        ranks, cut = joined[places]
        if (id(ranks), entry.shape) not in whole:
            _check_whole(name, cut.parts, ranks, entry.shape)
            whole.add((id(ranks), entry.shape))
        tensors[name] = TensorEntry(entry.dtype, entry.shape, cut=cut)
    return tensors


def _join(name: str, parts: Parts, owned: Sequence[dict[int, int]]) -> list[int]:
    """Return the rank that wrote each piece; -1 where none did."""
    ranks = [-1] * cuts.count(parts)
    for pieces in owned:
        for number, rank in pieces.items():
            if ranks[number] >= 0:
                raise RuntimeError(_twice(name, number, ranks[number], rank))
            ranks[number] = rank
    return ranks


def _twice(name: str, number: int, one: int, other: int) -> str:
    return (
        f"tensor {name}: piece {number} was written by ranks {one} and {other}:"
        " every element must be owned by exactly one rank"
    )


def _check_whole(name: str, parts: Parts, ranks: Sequence[int], shape: tuple[int, ...]) -> None:
    filled = cuts.filled(parts, shape)
    missing = [n for n, rank in enumerate(ranks) if rank < 0 and (filled is None or n in filled)]
    if missing:
        raise RuntimeError(
            f"tensor {name}: {len(missing)} of {len(ranks)} pieces were written by no rank, the first is"
            f" {missing[0]}: every element must be owned by exactly one rank"
        )


def _check_tiling(name: str, entry: TensorEntry) -> None:
    """Inside the tensor, no two at one place, volumes adding up: what a wrong owner would break, in linear
    time.
    """
    for piece in entry.pieces:
        inside = len(piece.shape) == len(piece.offset) == len(entry.shape) and all(
            low >= 0 and low + size <= full
            for low, size, full in zip(piece.offset, piece.shape, entry.shape, strict=True)
        )
        if not inside:
            raise RuntimeError(
                f"tensor {name}: piece at {list(piece.offset)} of shape {list(piece.shape)}"
                f" leaves {list(entry.shape)}"
            )
    held = sum(prod(piece.shape) for piece in entry.pieces)
    if held != prod(entry.shape) or len({piece.offset for piece in entry.pieces}) != len(entry.pieces):
        raise RuntimeError(
            f"tensor {name}: {len(entry.pieces)} owned pieces hold {held} of {prod(entry.shape)} elements:"
            " every element must be owned by exactly one rank"
        )
