"""JSON on disk that may be torn or damaged: what is wrong is left out, or named in one line."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from trainer.config import schema
from trainer.record.reading import objects

MARK_BYTES = 256  # by which a file is known to be the one that was read
FILE_BYTES = 64 << 20  # of one JSON document
_said: set[Path] = set()  # files with wrong lines, which were told of

Record = TypeVar("Record")


def document(file: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds; None where there is no file.

    Raises:
        ValueError: one line with the file; it holds something else.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES)
    except FileNotFoundError:
        return None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: not a JSON object")
    return values


def records(file: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the lines of a file as instances of the dataclass `kind`, first to last. A line that is none is
    left out, and standard error says so, once for each file.
    """
    wrong = 0
    for _, values in objects(file):
        found = None if values is None else as_record(values, kind)
        if found is not None:
            yield found
        else:
            wrong += 1
    if wrong and file not in _said:
        _said.add(file)
        lines = "1 line is" if wrong == 1 else f"{wrong} lines are"
        print(f"warning: {file}: {lines} damaged or foreign, and left out", file=sys.stderr, flush=True)


class Growing:
    """What is known of a JSON Lines file that grows: each update reads only what is new."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position, self._mark = 0, b""
        self.clear()

    def clear(self) -> None:
        """Forget what the lines told. To be overridden."""

    def take(self, values: dict[str, Any]) -> None:
        """Learn from one object. To be overridden."""

    def update(self) -> None:
        """Read the lines that have come; all of them where the file is another one now."""
        try:
            if self._is_another():
                self._position = 0
                self.clear()
            for position, values in objects(self._file, self._position):
                self._position = position
                if values is not None:
                    self.take(values)
            self._mark = self._end_of(self._position)
        except OSError:  # nothing can be read at the moment
            return

    def _is_another(self) -> bool:
        return bool(self._position) and self._end_of(self._position) != self._mark

    def _end_of(self, position: int) -> bytes:
        if not self._file.is_file():
            return b""
        with self._file.open("rb") as lines:
            start = lines.seek(max(0, position - MARK_BYTES))
            return lines.read(position - start)


def as_record(values: dict[str, Any], kind: type[Record]) -> Record | None:
    """Return an instance of the dataclass `kind`; None where a value is missing or of another type. Keys of
    later versions are left out.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    try:
        found: Record = schema.build(kind, {f.name: values[f.name] for f in fields if f.name in values})
    except (ValueError, RecursionError):
        return None
    return found


def number(value: Any) -> float | None:
    """Return a finite number that is not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) and value >= 0 else None
    except OverflowError:  # an integer that no float holds
        return None


def count(value: Any) -> int | None:
    """Return an integer from 0 on that 64 bits hold; None for anything else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if is_count else None
