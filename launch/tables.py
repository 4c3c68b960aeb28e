"""What commands print: tables for people, one JSON document for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.printable import printable


def facts(title: str, values: Mapping[str, Any]) -> None:
    """Print a table of two columns: names and values."""
    rows(title, ("", ""), values.items(), header=False)


def rows(title: str, columns: Sequence[str], lines: Iterable[Sequence[Any]], *, header: bool = True) -> None:
    """Print a table. Columns of numbers are aligned on the right; thousands are separated."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [list(line) for line in lines]
    table = Table(show_header=header, box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = index > 0 and all(isinstance(line[index], int | float) for line in lines)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(shown(cell)) for cell in line))  # a str's [brackets] would be markup
    print(printable(title))
    # Output to a pipe or a file is not folded at the width of a terminal.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def shown(value: Any) -> str:
    """Format a cell: 1234567 → 1,234,567; None → -. What does not print is escaped."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else printable(str(value))


def size(count: int) -> str:
    """Format a number of bytes: 1536 → 1.5 KiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def document(value: Any) -> None:
    """Print one JSON document on standard output. What does not print is escaped as JSON escapes it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)  # str: paths
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
