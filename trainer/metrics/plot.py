"""The loss curve of a run as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#475569"
_HELD_OUT = ("#ea580c", "#0d9488", "#9333ea", "#be123c")


def loss_curve(metrics: Path, picture: Path, *, title: str) -> None:
    """Draw `metrics.jsonl` as a PNG: training loss (nats a token) and held-out bits per byte, over tokens.

    RuntimeError where there is no step to draw.
    """
    # The object interface, not pyplot: no window system, no state left in the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    tokens, losses, held_out = _read(metrics)
    if not losses:
        raise RuntimeError(f"{metrics}: no step with a loss to draw")
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens, losses, color=_BLUE, alpha=0.25, linewidth=0.9)
    axes.plot(tokens, smooth(losses), color=_BLUE, linewidth=2.0, label="training loss, smoothed")
    axes.set_xlabel("tokens", color=_GREY)
    axes.set_ylabel("training loss (nats per token)", color=_BLUE)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.set_xlim(0, tokens[-1] * 1.01)
    low, high = min(losses), sorted(losses)[int(0.995 * (len(losses) - 1))]
    axes.set_ylim(low - 0.06 * (high - low + 0.1), high + 0.06 * (high - low + 0.1))
    axes.grid(color="#e2e8f0", linewidth=0.8)
    axes.set_axisbelow(True)
    drawn = [axes]
    if held_out:
        right = axes.twinx()
        for color, (name, points) in zip(_HELD_OUT * len(held_out), held_out.items()):
            at, bits = zip(*points, strict=True)
            label = f"held-out {name}: {bits[-1]:.3f} at the end"
            right.plot(at, bits, color=color, marker="o", markersize=4.5, linewidth=1.4, label=label)
        bottom, top = right.get_ylim()
        right.set_ylim(bottom - 0.25 * (top - bottom), top)  # the two curves look alike: keep them apart
        right.set_ylabel("held-out bits per byte", color=_ORANGE if len(held_out) == 1 else _GREY)
        right.tick_params(colors=_ORANGE if len(held_out) == 1 else _GREY, length=0)
        drawn.append(right)
    axes.tick_params(axis="x", colors=_GREY, length=0)
    axes.tick_params(axis="y", colors=_BLUE, length=0)
    for each in drawn:
        each.spines[:].set_visible(False)
    labels = {str(line.get_label()): line for each in drawn for line in each.get_lines()}
    shown = {label: line for label, line in labels.items() if not label.startswith("_")}
    drawn[-1].legend(list(shown.values()), list(shown), loc="upper right", frameon=False)
    axes.set_title(title, loc="left", fontweight="bold", color="#0f172a", pad=12)
    part = picture.with_name(f".tmp-{picture.name}")
    figure.savefig(part, format="png")
    part.replace(picture)


def _read(metrics: Path) -> tuple[list[float], list[float], dict[str, list[tuple[float, float]]]]:
    """(tokens, losses, {held-out name: [(tokens, bits per byte)]}) of the file's steps."""
    tokens: list[float] = []
    losses: list[float] = []
    held_out: dict[str, list[tuple[float, float]]] = {}
    at_step: dict[int, float] = {}
    evaluations = []
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if record.get("loss") is not None:
            tokens.append(record["tokens"])
            losses.append(record["loss"])
            at_step[record["step"]] = record["tokens"]
        if "eval" in record:
            evaluations.append(record)
    per_step = tokens[-1] / max(at_step, key=lambda step: step) if tokens else 0.0
    for record in evaluations:
        at = at_step.get(record["step"], record["step"] * per_step)
        for name, values in record["eval"].items():
            if values.get("bits_per_byte") is not None:
                held_out.setdefault(name, []).append((at, values["bits_per_byte"]))
    return tokens, losses, held_out


def smooth(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Centred running mean over `share` of the points. Near the start, where losses fall fast, the window
    narrows on both sides; at the end, where they are noise, only on the side where there are none.
    """
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    half = max(1, round(share * len(values) / 2))
    last = len(values) - 1
    windows = ((max(0, at - half), min(last, at + min(half, at))) for at in range(len(values)))
    return [(sums[high + 1] - sums[low]) / (high + 1 - low) for low, high in windows]
