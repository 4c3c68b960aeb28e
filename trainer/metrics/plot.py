"""Curves of one run, or of several over one another, as a PNG."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from trainer.metrics.curves import Curves, Points

COLORS = ("#2563eb", "#ea580c", "#0d9488", "#9333ea", "#be123c", "#ca8a04", "#475569", "#15803d")
DASHES = ("-", "--", ":", "-.")
INK, GREY, LINES = "#0f172a", "#475569", "#e2e8f0"
MOST_POINTS = 4000  # of a curve: more than there are pixels across


def draw(runs: Sequence[Curves], picture: Path, *, title: str) -> None:
    """Four panels over tokens: training loss, held-out bits per byte (held-out loss where no run has these),
    gradient norm, learning rate. A run has one color; where there is one run only, its held-out sets and its
    sources have one each.
    """
    # The object interface, not pyplot: no window system, no state left in the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, height_ratios=(3, 2), sharex=True)
    (loss, heldout), (norm, rate) = panels
    bits, of_text = any(run.heldout for run in runs), all(run.unit == "tokens" for run in runs)
    for run, color in zip(runs, _cycle(COLORS, len(runs))):
        _curve(loss, run.loss, color, run.name if len(runs) > 1 else "training, smoothed", faint=True)
        _curve(norm, run.grad_norm, color, run.name, faint=True)
        rate.plot(*_thinned(run.lr), color=color, linewidth=1.6, label=run.name)
        if len(runs) == 1:
            _sources(loss, run)
        _heldout(heldout, run, run.heldout if bits else run.heldout_loss, color, several=len(runs) > 1)
    _dress(loss, "training loss" + " (nats per token)" * of_text, [y for run in runs for _, y in run.loss])
    _dress(heldout, "held-out bits per byte" if bits else "held-out loss")
    _dress(norm, "gradient norm, before clipping", [y for run in runs for _, y in run.grad_norm])
    _dress(rate, "learning rate")
    rate.set_ylim(bottom=0)
    for panel in (norm, rate):
        panel.set_xlabel("tokens" if of_text else "targets", color=GREY)
    if not any(run.heldout_loss for run in runs):
        heldout.text(0.5, 0.5, "no evaluation", transform=heldout.transAxes, ha="center", color=GREY)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    part = picture.with_name(f".tmp-{picture.name}")
    figure.savefig(part, format="png")
    part.replace(picture)


def smooth(points: Points, share: float = 0.04) -> list[float]:
    """Centred running mean over `share` of the tokens, however dense the points. Near the start, where losses
    fall fast, the window narrows on both sides; at the end, where they are noise, only on the side where
    there are none. It holds both neighbours at least.
    """
    tokens = [at for at, _ in points]
    sums = [0.0, *accumulate(value for _, value in points)]
    half, last = share / 2 * (tokens[-1] - tokens[0]), len(points) - 1
    means = [points[0][1]]
    for number, at in enumerate(tokens[1:], 1):
        reach = min(half, at - tokens[0])
        low = min(bisect_left(tokens, at - reach), number - 1)
        high = min(last, max(bisect_right(tokens, at + reach) - 1, number + 1))
        means.append((sums[high + 1] - sums[low]) / (high + 1 - low))
    return means


def _curve(axes: Any, points: Points, color: str, label: str, *, faint: bool) -> None:
    """The smoothed values, and behind them faintly the values themselves."""
    if not points:
        return
    tokens = [at for at, _ in points]
    if faint:
        axes.plot(*_thinned(points), color=color, alpha=0.22, linewidth=0.8)
    axes.plot(*_thinned(list(zip(tokens, smooth(points)))), color=color, linewidth=1.8, label=label)


def _sources(axes: Any, run: Curves) -> None:
    for (source, points), color in zip(run.sources.items(), _cycle(COLORS[1:], len(run.sources))):
        _curve(axes, points, color, f"source {source}", faint=False)


def _heldout(axes: Any, run: Curves, sets: dict[str, Points], color: str, *, several: bool) -> None:
    colors = [color] * len(sets) if several else _cycle(COLORS[1:], len(sets))
    for (name, points), each, dash in zip(sets.items(), colors, _cycle(DASHES, len(sets))):
        label = f"{run.name}: {name}" if several else f"{name}: {points[-1][1]:.3f} at the end"
        style = {"linestyle": dash if several else "-", "marker": "o", "markersize": 3.5}
        axes.plot(*_thinned(points), color=each, linewidth=1.4, label=label, **style)


def _dress(axes: Any, label: str, values: Sequence[float] = ()) -> None:
    """Labels, grid and legend; `values`: what sets the height, but for the few highest (the first steps)."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_ylabel(label, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if values:
        low, high = min(values), sorted(values)[int(0.995 * (len(values) - 1))]
        margin = 0.06 * (high - low + 0.1 * abs(high) + 1e-12)
        axes.set_ylim(low - margin, high + margin)
    axes.grid(color=LINES, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, length=0)
    axes.spines[:].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or "held-out" in label:
        axes.legend(handles, labels, loc="best", frameon=False, fontsize=8) if labels else None


def _thinned(points: Points) -> tuple[list[float], list[float]]:
    """(tokens, values), at most MOST_POINTS of them and the last one."""
    every = max(1, -(-len(points) // MOST_POINTS))
    kept = [*points[:-1:every], *points[-1:]]
    return [at for at, _ in kept], [value for _, value in kept]


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]
