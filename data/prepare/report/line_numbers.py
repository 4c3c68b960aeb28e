"""Line numbers for people: from a line after the beginning of a file range to a line of the file."""

import re
from collections.abc import Sequence

from data.opening import open_bytes
from data.prepare.tally import Tally
from data.prepare.units import Unit

_LINE = re.compile(r"(.*), line (\d+) after byte (\d+)(.*)", re.DOTALL)
_CHUNK = 1 << 20


def number_lines_by_file(tally: Tally, units: Sequence[Unit]) -> None:
    """Replace "line 3 after byte 70" by the line of the file, in the few examples that a tally keeps.

    Left as it is: an example of a file on a server, which would be fetched again for this, and of one of two
    files with the same name below their sources, since the tally has only that name.
    """
    paths_at: dict[tuple[str, int], list[str]] = {}
    for part in (part for unit in units for part in unit.ranges if part.start):
        paths_at.setdefault((part.file.relative, part.start), []).append(part.file.path)
    for examples in tally.examples.values():
        for place, example in enumerate(examples):
            found = _LINE.fullmatch(example)
            paths = paths_at.get((found[1], int(found[3])), []) if found else []
            if found and len(paths) == 1 and "://" not in paths[0]:
                line = _lines_before(paths[0], int(found[3])) + int(found[2])
                examples[place] = f"{found[1]}, line {line}{found[4]}"


def _lines_before(path: str, offset: int) -> int:
    """The number of lines before the first line that begins at `offset` or later."""
    with open_bytes(path) as stream:
        left, lines = offset - 1, 1
        while left and (chunk := stream.read(min(left, _CHUNK))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
        return lines
