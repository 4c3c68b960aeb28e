"""Units: the parts into which the work on the input is cut.

    files in order:   [a: 3 MB] [b: 1 MB] [c:            20 MB            ] [d: 2 MB]
    units of 8 MB:    |   a whole, b whole   |  c 0–8  |  c 8–16  |  c 16–20, d whole  |

One worker does one unit at a time. Units depend on the input alone, never on the number of workers or on what
runs them, and shards never span units: so the output is the same bytes however many processes work on it, and
a killed run can go on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.opening import naming, open_bytes
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import is_transcoded
from data.prepare.sources.sources import COMPRESSED, InputFile, is_http

# Kinds of file of which a range of bytes can be read by itself, if the file is neither compressed nor in
# another encoding than UTF-8; a text that is split, only if the separator cannot overlap with itself.
BY_RANGE = ("text", "jsonl", "fasta", "ids")

# What the work on a unit calls with the size of its input that is done; −1 for all that is left of the unit.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class FileRange:
    """A part of one file: the documents that begin in [start, end).

    file: the file.
    start, end: bytes of the file; row groups, if it is Parquet.
    """

    file: InputFile
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """The size of the work, in bytes of input."""
        return self.end - self.start if self.file.kind in BY_RANGE else self.file.bytes


@dataclass(frozen=True)
class Unit:
    """Consecutive ranges that are worked on together and end up in shards of their own.

    number: the place among all units, from 0.
    ranges: in the order of the corpus.
    """

    number: int
    ranges: tuple[FileRange, ...]

    @property
    def bytes(self) -> int:
        """The size of the work, in bytes of input."""
        return sum(part.bytes for part in self.ranges)

    @property
    def is_remote(self) -> bool:
        """Does any range come from a server?"""
        return any("://" in part.file.path for part in self.ranges)


def cut_into_units(files: list[InputFile], unit_bytes: int, recipe: Recipe) -> list[Unit]:
    """Cut the files into units of about `unit_bytes`: a large file by ranges, small files together."""
    units: list[Unit] = []
    waiting: list[FileRange] = []
    waiting_bytes = 0

    def close() -> None:
        nonlocal waiting_bytes
        if waiting:
            units.append(Unit(len(units), tuple(waiting)))
            waiting.clear()
            waiting_bytes = 0

    for file in files:
        for part in _ranges(file, unit_bytes, recipe):
            if waiting_bytes and waiting_bytes + part.bytes > unit_bytes:
                close()
            waiting.append(part)
            waiting_bytes += part.bytes
    close()
    return units


def _ranges(file: InputFile, unit_bytes: int, recipe: Recipe) -> Iterator[FileRange]:
    if file.kind == "parquet":
        yield from (FileRange(file, first, last) for first, last in _row_groups(file, unit_bytes))
    elif file.bytes > unit_bytes and _is_cuttable(file, recipe):
        for start in range(0, file.bytes, unit_bytes):
            yield FileRange(file, start, min(start + unit_bytes, file.bytes))
    else:
        yield FileRange(file, 0, file.bytes)


def _is_cuttable(file: InputFile, recipe: Recipe) -> bool:
    if file.kind not in BY_RANGE or file.path.lower().endswith(COMPRESSED) or is_http(file.path):
        return False
    if file.kind == "text" and not recipe.split_lines:
        # In "a\n\n\nb" the place where reading begins decides which two of the three are the separator.
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
