"""Score against the number of labels, as a PNG. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.metrics.plot import COLORS, GREY, INK, LINES
from trainer.transfer.table import Made, Row

FILE = "transfer.png"


def draw(made: Made, picture: Path) -> None:
    """One panel a method: mean over seeds, and a band of one standard deviation on both sides."""
    # The object interface, not pyplot: no window system, no state left in the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row.method for row in made.rows))
    figure = Figure(figsize=(3.4 * len(methods) + 0.6, 3.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, method in zip(panels, methods):
        rows = [row for row in made.rows if row.method == method]
        if method != "full" and rows[0].scratch:
            _curve(panel, rows, [row.scratch for row in rows], GREY, "random, full", dashed=True)
        _curve(panel, rows, [row.random for row in rows], COLORS[1], f"random, {method}")
        _curve(panel, rows, [row.pretrained for row in rows], COLORS[0], f"pre-trained, {method}")
        _dress(panel, [row.labels for row in rows])
    panels[0].set_ylabel(f"{made.metric}, held out", color=INK)
    title = f"{made.name}: mean and standard deviation of {made.seeds} seeds"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK, fontsize=10)
    part = picture.with_name(f".tmp-{picture.name}")
    figure.savefig(part, format="png")
    part.replace(picture)


def _curve(
    panel: Any,
    rows: Sequence[Row],
    scores: Sequence[list[float]],
    color: str,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    at = [row.labels for row in rows]
    means = [statistics.mean(each) for each in scores]
    reach = [statistics.stdev(each) for each in scores]
    panel.plot(at, means, "--" if dashed else "o-", color=color, markersize=3.5, linewidth=1.6, label=label)
    if not dashed:
        low, high = ([mean + sign * each for mean, each in zip(means, reach)] for sign in (-1, 1))
        panel.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)


def _dress(panel: Any, numbers: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(numbers), [str(number) for number in numbers], fontsize=7)
    panel.minorticks_off()
    panel.set_xlabel("labels", color=GREY)
    panel.grid(color=LINES, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=GREY, length=0)
    panel.spines[:].set_visible(False)
    panel.legend(loc="best", frameon=False, fontsize=7.5)
