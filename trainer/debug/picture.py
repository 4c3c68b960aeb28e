"""Statistics by layer as a PNG: outputs on the left, weights on the right, the model from left to right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.debug.layer_table import Row
from trainer.debug.observer import OUTPUT, WEIGHT
from trainer.metrics.plot import COLORS, DASHES, GREY, INK, LINES

Series = dict[str, dict[str, Row]]
"""Line of the picture → layer → row."""

MOST_TICKS = 12


def draw(rows: Sequence[Row], picture: Path, *, title: str) -> None:
    """Six panels over the layers. Of outputs: the layers' own, and those of the modules right inside a block.
    Of weights: each matrix of a block.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 2, sharex=True)
    layers = [row.layer for row in sorted(rows, key=lambda row: row.place)]
    at = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
    for column, (kind, what) in enumerate(((OUTPUT, "outputs"), (WEIGHT, "weights"))):
        series = _series(rows, kind)
        spread, gradient, zeros = panels[:, column]
        _lines(spread, series, at, lambda row: row.values.std)
        _lines(spread, series, at, lambda row: row.values.largest, faint=True)
        _lines(gradient, series, at, lambda row: row.gradient.norm if row.gradient.count else math.nan)
        _lines(zeros, series, at, lambda row: 100 * row.values.zero_fraction)
        _dress(spread, f"{what}: standard deviation\n(faint, dotted: largest magnitude)", logarithmic=True)
        _dress(
            gradient,
            f"norm of the mean loss's gradient\nwith respect to the {what} (nats per unit)",
            logarithmic=True,
        )
        _dress(zeros, f"{what} that are 0 (%)", logarithmic=False)
        _ticks(zeros, at)
        spread.set_title(
            f"{what} of the modules" if kind == OUTPUT else "weights, before the update", color=INK
        )
        zeros.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.32))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    figure.savefig(picture, format="png")


def _series(rows: Sequence[Row], kind: str) -> Series:
    """Sort the rows of a kind into lines: by their name inside the layer, without the word `weight`."""
    found: Series = {}
    for row in rows:
        inside = row.name.removeprefix(row.layer).strip(".").removesuffix("weight").strip(".")
        if row.kind != kind or (kind == OUTPUT and "." in inside):
            continue
        found.setdefault(inside, {})[row.layer] = row
    return dict(sorted(found.items()))


def _lines(
    panel: Any, series: Series, at: Mapping[str, int], value: Callable[[Row], float], *, faint: bool = False
) -> None:
    for number, (name, of_layer) in enumerate(series.items()):
        known = {at[layer]: value(row) for layer, row in of_layer.items()}
        own = not name  # the layers themselves
        panel.plot(
            range(len(at)),
            [known.get(x, math.nan) for x in range(len(at))],  # no line where there is a gap
            color=INK if own else COLORS[(number - 1) % len(COLORS)],
            linestyle=":" if faint else DASHES[(number - 1) // len(COLORS) % len(DASHES)] if name else "-",
            linewidth=(2.0 if own else 1.2) * (0.6 if faint else 1.0),
            alpha=0.5 if faint else 1.0,
            marker="" if faint else "o",
            markersize=4 if len(at) <= 30 else 2,
            label=None if faint else name or "the layer itself",
        )


def _dress(panel: Any, label: str, *, logarithmic: bool) -> None:
    panel.set_ylabel(label, color=INK, fontsize=9)
    if logarithmic:
        panel.set_yscale("log", nonpositive="mask")
    else:
        panel.set_ylim(0, max(1.0, panel.get_ylim()[1]))
    panel.grid(color=LINES, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(which="both", colors=GREY, length=0, labelsize=8)
    panel.spines[:].set_visible(False)


def _ticks(panel: Any, at: Mapping[str, int]) -> None:
    """Name the layers: those at the ends, and as many blocks as there is room for, by their number."""
    blocks = [layer for layer in at if layer[-1].isdigit()]
    every = max(1, -(-len(blocks) // MOST_TICKS))
    shown = [layer for layer in at if layer not in blocks] + blocks[::every]
    panel.set_xticks(
        [at[layer] for layer in shown], [layer.rpartition(".")[2] for layer in shown], rotation=45
    )
    panel.set_xlabel("layer, from the model's input to its output", color=GREY)
