"""Statistics of a step over all ranks: by module and parameter as a CSV file, by layer as a table.

Names and numbers are those of one process, whatever the layout (law 1): each rank counts its own part of the
values, and parameters have the names that they have in a checkpoint.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.model_plan import ModelPlan
from trainer.debug.moments import Moments
from trainer.debug.observer import OUTPUT, OUTPUT_GRADIENT, WEIGHT, WEIGHT_GRADIENT, Found
from trainer.ranks import Ranks

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    *("kind", "name", "layer", "count", "mean", "std", "max", "zeros", "norm"),
    *("gradient_mean", "gradient_std", "gradient_max", "gradient_zeros", "gradient_norm"),
)
HEADINGS = ("mean", "std", "max", "zeros", "grad norm")  # of the printed table
HEIGHT = 25  # of no account; without a height rich does not heed a width where TERM=dumb
WIDE = 160  # characters of a line where there is no terminal


@dataclass(frozen=True)
class Row:
    """A module's output or a parameter, over the whole global batch and model.

    kind: OUTPUT or WEIGHT.
    name: of the module, or of the parameter.
    layer: the block, such as `layers.3`, or the module at an end that the name is in.
    place: of the layer in the model, for sorting.
    values: its moments.
    gradient: of the mean loss with respect to it.
    """

    kind: str
    name: str
    layer: str
    place: tuple[int, int, int]
    values: Moments
    gradient: Moments


def gather_rows(found: Found, ranks: Ranks, plan: ModelPlan) -> list[Row]:
    """Add the moments of all ranks up, and sort them: outputs before weights, in the model's order.
    Collective.
    """
    whole: Found = {}
    for of_rank in ranks.gather(found):
        for key, moments in of_rank.items():
            whole.setdefault(key, Moments()).add(moments)
    gradient_of = {OUTPUT: OUTPUT_GRADIENT, WEIGHT: WEIGHT_GRADIENT}
    rows = []
    for (kind, name), values in whole.items():
        if kind in gradient_of:
            layer = layer_of(name, plan)
            gradient = whole.get((gradient_of[kind], name), Moments())
            rows.append(Row(kind, name, layer, place_of(layer, plan), values, gradient))
    return sorted(rows, key=lambda row: (row.kind, row.place, row.name))


def layer_of(name: str, plan: ModelPlan) -> str:
    """Return the part of the model that a module or parameter is in: a block (`layers.3` of
    `layers.3.mlp.w1`), or one of the modules before and after the blocks.
    """
    ends = (end for end in (*plan.first, *plan.last) if name == end or name.startswith(f"{end}."))
    return plan.block_of(name) or next(ends, name.split(".")[0])


def place_of(layer: str, plan: ModelPlan) -> tuple[int, int, int]:
    """Return where a layer is in the model: tower by tower its first modules, its blocks, its last modules;
    then what is in no tower.
    """
    for number, tower in enumerate(plan.towers):
        if layer in tower.first:
            return number, 0, tower.first.index(layer)
        if layer in tower.last:
            return number, 2, tower.last.index(layer)
        if layer.startswith(f"{tower.blocks}."):
            return number, 1, int(layer.rpartition(".")[2])
    return len(plan.towers), 0, 0


def by_layer(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each layer and kind: its own output, and all its parameters together."""
    merged: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.kind == OUTPUT and row.name != row.layer:
            continue
        empty = replace(row, name=row.layer, values=Moments(), gradient=Moments())
        whole = merged.setdefault((row.kind, row.layer), empty)
        whole.values.add(row.values)
        whole.gradient.add(row.gradient)
    return list(merged.values())


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write every row with all its statistics; numbers in full."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            values, gradient = row.values, row.gradient
            writer.writerow(
                (
                    *(row.kind, row.name, row.layer, values.count),
                    *(values.mean, values.std, values.largest, values.zero_fraction, values.norm),
                    *(gradient.mean, gradient.std, gradient.largest, gradient.zero_fraction, gradient.norm),
                )
            )


def show(rows: Sequence[Row]) -> None:
    """Print a line for each layer: its output beside its parameters, or in a table of their own below where
    the terminal is too narrow. Names and numbers are never shortened.
    """
    from rich.console import Console

    console = Console()
    # Output to a pipe or a file is not folded at the width of a terminal.
    room = console.width if console.is_terminal else WIDE
    for table in _fitting(rows, room):
        Console(width=max(room, _width(table)), height=HEIGHT).print(table)


def _fitting(rows: Sequence[Row], room: int) -> list[Table]:
    """The tables that are at most `room` characters wide, with as much in them as there is room for."""
    layers: dict[str, dict[str, Row]] = {}
    for row in sorted(by_layer(rows), key=lambda row: row.place):
        layers.setdefault(row.layer, {})[row.kind] = row
    tables = [_table(layers, (OUTPUT, WEIGHT))]
    for without in ((), ("zeros",), ("zeros", "mean"), ("zeros", "mean", "max")):
        if max(map(_width, tables)) <= room:
            break
        tables = [_table(layers, (kind,), without) for kind in (OUTPUT, WEIGHT)]
    return tables


def _table(
    layers: Mapping[str, Mapping[str, Row]], kinds: Sequence[str], without: Sequence[str] = ()
) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("layer", no_wrap=True)
    headings = [heading for heading in HEADINGS if heading not in without]
    for kind in kinds:
        for heading in headings:
            above = {OUTPUT: "output", WEIGHT: "weights"}[kind] if heading == headings[0] else ""
            table.add_column(f"{above}\n{heading}", justify="right", no_wrap=True)
    for layer, of_layer in layers.items():
        if any(kind in of_layer for kind in kinds):
            cells = (_cells(of_layer.get(kind)) for kind in kinds)
            shown = (cell for row in cells for heading, cell in zip(HEADINGS, row) if heading in headings)
            table.add_row(layer, *shown)
    return table


def _width(table: Table) -> int:
    from rich.console import Console

    return Console(width=10_000, height=HEIGHT).measure(table).maximum


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-"] * len(HEADINGS)
    values, gradient = row.values, row.gradient
    return [
        f"{values.mean:.2g}",
        f"{values.std:.3g}",
        f"{values.largest:.3g}",
        f"{values.zero_fraction:.1%}",
        f"{gradient.norm:.3g}" if gradient.count else "-",
    ]
