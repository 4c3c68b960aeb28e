"""Units: the parts into which the work on the input is cut.

    files in order:   [a: 3 MB] [b: 1 MB] [c:            20 MB            ] [d: 2 MB]
    units of 8 MB:    |   a whole, b whole   |  c 0–8  |  c 8–16  |  c 16–20, d whole  |

One worker does one unit at a time. Units depend on the input, the recipe and the unit size, never on the
number of workers or on where they run, and shards never span units: so the output is the same bytes however
many processes work on it, and a killed run can go on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.opening import naming, open_bytes
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import is_transcoded
from data.prepare.sources.sources import COMPRESSED, InputFile, is_http

# Kinds of file that can be cut by bytes. `_is_cuttable` says which files of them: not compressed, transcoded
# or from a web server; a text only if it is split by lines or by a separator that cannot overlap itself.
BY_RANGE = ("text", "jsonl", "fasta", "ids", "conll")

# Called with about how many more bytes of the unit's input are done (of a text, its characters); −1: all that
# is left.
Advance = Callable[[int], None]


class Task(Protocol):
    """A part of the work that one worker does at a time: a unit, or a share of documents.

    number: the place among all tasks of its kind, from 0.
    bytes: the size of the work.
    is_remote: does it read from a server, whose failures pass?
    """

    @property
    def number(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def is_remote(self) -> bool: ...


# (preparation, task, advance): does one task. A second call for a task goes on where a failed one stopped;
# calls at the same time do no harm.
TaskFunction = Callable[[Any, Any, Advance], None]
# (function, preparation, tasks, advance): calls the function for every task, in any order and in any process;
# `advance` is called in this one.
Run = Callable[[TaskFunction, Any, Sequence[Task], Advance], None]


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
        """The size of the work, in bytes of input. Of a range of row groups this is the whole file's size, so
        a Parquet file that is cut counts once for each range.
        """
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
