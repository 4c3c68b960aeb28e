"""Statistics by layer as a PNG: outputs on the left, weights on the right, the model from left to right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.debug.layer_table import Row
from trainer.debug.observer import OUTPUT, WEIGHT
from trainer.metrics.plot import COLORS as FEW_COLORS
from trainer.metrics.plot import GREY, INK, LINES

Series = dict[str, dict[str, Row]]
"""Line of the picture → layer → row."""

# A block has nine parameters or more.
COLORS = (*FEW_COLORS, "#db2777", "#65a30d", "#78350f", "#06b6d4")
DASHES = ("-", "--", "-.")  # dotted is the largest magnitude
MOST_TICKS = 12
NICE_STEPS = (1, 2, 5, 10, 20, 50, 100)


def draw(rows: Sequence[Row], picture: Path, *, title: str) -> None:
    """Six panels over the layers. Of outputs: the layers' own, and those of the modules right inside a block.
    Of weights: each parameter of a block.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 2, sharex=True, height_ratios=(3, 3, 1.6))
    at = _places(rows)
    for column, (kind, what) in enumerate(((OUTPUT, "output"), (WEIGHT, "weight"))):
        series = _series(rows, kind)
        spread, gradient, zeros = panels[:, column]
        _lines(spread, series, at, lambda row: row.values.std)
        _lines(spread, series, at, lambda row: row.values.largest, faint=True)
        _lines(gradient, series, at, lambda row: row.gradient.norm if row.gradient.count else math.nan)
        spread.set_yscale("log", nonpositive="mask")
        gradient.set_yscale("log", nonpositive="mask")
        _dress(spread, f"{what}s: standard deviation\n(dotted, hollow: largest magnitude)")
        _dress(gradient, f"norm of the mean loss's gradient\n(nats per unit of {what})")
        if kind == OUTPUT:
            _lines(zeros, series, at, lambda row: 100 * row.values.zero_fraction)
            _dress(zeros, "outputs that are 0 (%)")
        else:  # a weight is hardly ever 0; its gradient is where nothing uses the weight
            _lines(zeros, series, at, lambda row: 100 * row.gradient.zero_fraction)
            _dress(zeros, "gradients that are 0 (%)")
        zeros.set_ylim(0, max(1.0, zeros.get_ylim()[1]))
        _name_layers(zeros, at)
        spread.set_title(
            "outputs of the modules" if kind == OUTPUT else "weights, before the update", color=INK
        )
        zeros.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.5))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    figure.savefig(picture, format="png")


def _places(rows: Sequence[Row]) -> dict[str, float]:
    """Layer → place on the x axis: blocks at their number, the others with room for their names. A tower
    begins behind the one before it.
    """
    places = {row.layer: row.place for row in sorted(rows, key=lambda row: row.place)}
    found: dict[str, float] = {}
    for tower in sorted({tower for tower, _, _ in places.values()}):
        here = {layer: (part, number) for layer, (at, part, number) in places.items() if at == tower}
        blocks = [number for part, number in here.values() if part == 1]
        last, room = max(blocks, default=0), max(1.0, len(blocks) / 14)
        inside = {}
        for layer, (part, number) in here.items():
            first = [0.0 - room * (sum(p == 0 for p, _ in here.values()) - number), float(number)]
            inside[layer] = (*first, last + room * (number + 1))[part]
        start = max(found.values()) + room - min(inside.values()) if found else 0.0
        found |= {layer: start + at for layer, at in inside.items()}
    return found


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
    panel: Any,
    series: Series,
    at: Mapping[str, float],
    value: Callable[[Row], float],
    *,
    faint: bool = False,
) -> None:
    for number, (name, of_layer) in enumerate(series.items()):
        own = not name  # the layers themselves; of weights, the layers with one parameter
        dash = ":" if faint else DASHES[(number - 1) // len(COLORS) % len(DASHES)] if name else "-"
        in_blocks = any(row.place[1] == 1 for row in of_layer.values())
        panel.plot(
            list(at.values()),
            [value(of_layer[layer]) if layer in of_layer else math.nan for layer in at],  # nan: a gap
            color=INK if own else COLORS[(number - 1) % len(COLORS)],
            linestyle=dash if in_blocks else "",  # the parts at the ends have nothing to do with each other
            linewidth=(2.0 if own else 1.2) * (0.6 if faint else 1.0),
            alpha=0.5 if faint else 1.0,
            marker="o",  # a single point has no line
            markerfacecolor="none" if faint else None,
            markersize=5 if own else 4 if len(at) <= 30 else 2,
            label=None if faint else name or _whole(of_layer),
        )


def _whole(of_layer: Mapping[str, Row]) -> str:
    blocks = any(row.place[1] == 1 for row in of_layer.values())
    return "the layer itself" if blocks else ", ".join(of_layer)


def _dress(panel: Any, label: str) -> None:
    panel.set_ylabel(label, color=INK, fontsize=9)
    panel.grid(color=LINES, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(which="both", colors=GREY, length=0, labelsize=8)
    panel.spines[:].set_visible(False)


def _name_layers(panel: Any, at: Mapping[str, float]) -> None:
    """Name the layers: those at the ends, and as many blocks as there is room for, by their number."""
    blocks = [layer for layer in at if layer.rpartition(".")[2].isdigit()]
    every = next((step for step in NICE_STEPS if len(blocks) <= step * MOST_TICKS), len(blocks))
    shown = [layer for layer in at if layer not in blocks] + blocks[::every]
    panel.set_xticks(
        [at[layer] for layer in shown], [layer.rpartition(".")[2] for layer in shown], rotation=45
    )
    panel.set_xlabel("layer, from the model's input to its output", color=GREY)
