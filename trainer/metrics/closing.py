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
    facts = [f"step {curves.step:,}", f"{curves.tokens:,} tokens", f"loss {curves.loss[-1][1]:.4f}"]
    if curves.seconds:
        facts.append(
            f"{curves.tokens / curves.seconds:,.0f} tokens/s over {duration(curves.seconds)} of steps"
        )
    if curves.mfu:
        facts.append(f"mfu {sum(value for _, value in curves.mfu) / len(curves.mfu):.1%}")
    lines = [f"{curves.name} is done: {', '.join(facts)}"]
    for name, points in curves.heldout.items():
        last, best = points[-1][1], ""
        if name in curves.best:
            step, bits = curves.best[name]
            best = ", its best" if bits == last else f", best {bits:.4f} at step {step:,}"
        lines.append(f"held-out {name}: {last:.4f} bits per byte at the end{best}")
    places = ("metrics.jsonl", PICTURE, "checkpoints")
    lines.append("see " + "  ".join(str(folder / place) for place in places))
    return lines


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
