"""The end of a finished run: a picture of its curves, and lines on how it went and where its files are."""

from __future__ import annotations

from pathlib import Path

from trainer.metrics.curves import Curves, read_curves
from trainer.metrics.plot import draw

PICTURE = "loss.png"


def close_run(folder: Path, name: str) -> list[str]:
    """Draw `loss.png` into a run folder; returns the closing lines.

    RuntimeError or OSError where the metrics cannot be read or the picture cannot be written.
    """
    curves = read_curves(folder / "metrics.jsonl", name)
    draw([curves], folder / PICTURE, title=name)
    return closing_lines(curves, folder)


def closing_lines(curves: Curves, folder: Path) -> list[str]:
    """How the run went and where its files are, for people."""
    unit = curves.unit
    amount = curves.tokens if unit == "tokens" else round(curves.processed)
    facts = [f"step {curves.step:,}", f"{amount:,} {unit}", f"loss {curves.loss[-1][1]:.4f}"]
    if curves.seconds:
        rate = curves.processed / curves.seconds
        facts.append(f"{rate:,.0f} {unit}/s over {duration(curves.seconds)} of steps")
    if curves.mfu:
        facts.append(f"mfu {sum(value for _, value in curves.mfu) / len(curves.mfu):.1%}")
    lines = [f"{curves.name} is done: {', '.join(facts)}"]
    for name, losses in curves.heldout_loss.items():
        bits = curves.heldout.get(name)
        last, best = (bits or losses)[-1][1], ""
        if name in curves.best:
            step, lowest = curves.best[name]
            best = ", its best" if lowest == last else f", best {lowest:.4f} at step {step:,}"
        figure = f"{last:.4f} bits per byte" if bits else f"loss {last:.4f}"
        further = "".join(f", {key} {_shown(value)}" for key, value in curves.measures[name].items())
        lines.append(f"held-out {name}: {figure} at the end{best}{further}")
    places = ("metrics.jsonl", PICTURE, "checkpoints")
    lines.append("see " + "  ".join(str(folder / place) for place in places))
    return lines


def _shown(figure: float) -> str:
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4f}"  # a count is an integer


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
