"""How the work on the input is cut into units.

A unit is what one worker does at a time. Units depend on the input alone, never on the number of workers, and
shards never span units: that is why the output is the same bytes however many work on it, and why a killed
run can go on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data.opening import naming, open_bytes
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import is_transcoded
from data.prepare.sources.sources import COMPRESSED, InputFile, is_http

# Kinds of which a range of bytes can be read by itself, given that the file is neither compressed nor in
# another encoding than UTF-8; text where it is split at what does not overlap itself.
BY_RANGE = ("text", "jsonl", "fasta", "ids")


@dataclass(frozen=True)
class Piece:
    """A part of one file: the documents that begin in [start, end): bytes, or row groups of a Parquet
    file.
    """

    file: InputFile
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of the work, in bytes of input."""
        return self.end - self.start if self.file.kind in BY_RANGE else self.file.bytes


@dataclass(frozen=True)
class Unit:
    """Consecutive pieces that are worked on together and end up in shards of their own."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Size of the work, in bytes of input."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def is_remote(self) -> bool:
        """Does any of it come from a server?"""
        return any("://" in piece.file.path for piece in self.pieces)


def plan_units(files: list[InputFile], unit_bytes: int, recipe: Recipe) -> list[Unit]:
    """Cuts the files into units of about `unit_bytes`: large files by range, small ones side by side."""
    units: list[Unit] = []
    waiting: list[Piece] = []
    waiting_bytes = 0

    def close() -> None:
        nonlocal waiting_bytes
        if waiting:
            units.append(Unit(len(units), tuple(waiting)))
            waiting.clear()
            waiting_bytes = 0

    for file in files:
        for piece in _pieces(file, unit_bytes, recipe):
            if waiting_bytes and waiting_bytes + piece.bytes > unit_bytes:
                close()
            waiting.append(piece)
            waiting_bytes += piece.bytes
    close()
    return units


def _pieces(file: InputFile, unit_bytes: int, recipe: Recipe) -> Iterator[Piece]:
    if file.kind == "parquet":
        yield from (Piece(file, first, last) for first, last in _row_groups(file, unit_bytes))
    elif file.bytes > unit_bytes and _is_cuttable(file, recipe):
        for start in range(0, file.bytes, unit_bytes):
            yield Piece(file, start, min(start + unit_bytes, file.bytes))
    else:
        yield Piece(file, 0, file.bytes)


def _is_cuttable(file: InputFile, recipe: Recipe) -> bool:
    if file.kind not in BY_RANGE or file.path.lower().endswith(COMPRESSED) or is_http(file.path):
        return False
    if file.kind == "text" and not recipe.split_lines:
        # In "a\n\n\nb" it depends on where one begins to read which two of three are the separator.
        separator = recipe.separator_bytes
        overlaps = any(separator.startswith(separator[place:]) for place in range(1, len(separator)))
        if not separator or overlaps:
            return False
    return file.kind == "ids" or not is_transcoded(file.path, recipe)


def _row_groups(file: InputFile, unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of row groups that hold about `unit_bytes`, uncompressed."""
    import pyarrow.parquet

    with naming(file.path), open_bytes(file.path) as stream:
        metadata = pyarrow.parquet.ParquetFile(stream).metadata
    first, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= unit_bytes:
            yield first, group + 1
            first, size = group + 1, 0
    if first < metadata.num_row_groups:
        yield first, metadata.num_row_groups
