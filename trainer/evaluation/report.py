"""The figures of all runs: tables to read, in Markdown, and one JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.printable import printable

FIRST = ("bits_per_byte", "perplexity", "loss")
"""What a table of several runs on several sets tells: the first of these that every set has."""

MEANING_OF_BIAS = (
    "The log-likelihood of a sentence with the first term minus that of the sentence with the other, in "
    "nats, and its 95 % interval."
)

_LEFT_OUT = ("bins",)  # of the tables


def document(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON document: `runs`, and `table`, a figure of each run on each set."""
    return {"runs": list(runs), "table": table_of(runs)}


def table_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return {figure, sets, rows: run → a value for each set, None where the run has none}."""
    names = list(dict.fromkeys(name for run in runs for name in run["sets"]))
    found = [figures for run in runs for figures in run["sets"].values()]
    figure = next((one for one in FIRST if all(one in figures for figures in found)), "loss")
    rows = {run["run"]: [run["sets"].get(name, {}).get(figure) for name in names] for run in runs}
    return {"figure": figure, "sets": names, "rows": rows}


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables as Markdown, which is as good to read on a terminal."""
    lines: list[str] = []
    if len(runs) > 1:
        table = table_of(runs)
        if table["sets"]:
            lines += [f"## {table['figure'].replace('_', ' ')}: each run on each set", ""]
            lines += _table(("run", *table["sets"]), [(run, *row) for run, row in table["rows"].items()])
    for run in runs:
        step = "" if run["step"] is None else f", step {run['step']}"
        lines += [f"## {run['run']}{step}", "", f"{run['layout']}, {run['precision']}", ""]
        lines += tables(run)
    return "\n".join(lines).rstrip() + "\n"


def tables(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a run's tables, each below a heading of the third level."""
    for title, key, first in (
        ("Held-out sets", "sets", "set"),
        ("Multiple choice by likelihood", "choices", "questions of"),
        ("Pictures, classified by captions", "images", "set"),
        ("lm-evaluation-harness", "tasks", "task"),
    ):
        if run.get(key):
            yield from (f"### {title}", "", *figures_table(first, run[key]))
            for name, figures in run[key].items():
                yield from _bins(name, figures)
    if run["data"]:
        yield from _data(run["data"])
    if "bias" in run:
        yield from ("### Bias", "", MEANING_OF_BIAS, "", *figures_table("pairs of", run["bias"]))


def _data(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("### Trained on", "")
    rows = []
    for source in sources:
        listed = (", ".join(source.get(kind, {})) or None for kind in ("source", "licence", "language"))
        rows.append((source["name"], source.get("documents"), source.get("text_bytes"), *listed))
    yield from _table(("corpus", "documents", "text bytes", "sources", "licences", "languages"), rows)


def figures_table(first: str, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table, a row a name and a column a figure, and an empty one. `first`: what the
    names are of.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row if name not in _LEFT_OUT))
    body = [(name, *(row.get(key) for key in names)) for name, row in rows.items()]
    return _table((first, *(name.replace("_", " ") for name in names)), body)


def _bins(name: str, figures: Mapping[str, Any]) -> list[str]:
    if not figures.get("bins"):
        return []
    keys = ("count", "confidence", "accuracy")
    body = [
        (f"{one['low']:.2f} to {one['high']:.2f}", *(one[key] for key in keys)) for one in figures["bins"]
    ]
    return [f"Calibration on {printable(name)}:", "", *_table(("confidence", "answers", *keys[1:]), body)]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[_shown(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    left = [column == 0 or any(isinstance(row[column], str) for row in rows) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (c.ljust(w) if at_left else c.rjust(w) for c, w, at_left in zip(row, widths, left))
        return "| " + " | ".join(padded) + " |"

    rule = [("-" * width if at_left else "-" * (width - 1) + ":") for width, at_left in zip(widths, left)]
    return [line(cells[0]), "| " + " | ".join(rule) + " |", *map(line, cells[1:]), ""]


def _shown(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 1e4 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else printable(str(cell)).replace("|", "\\|")
