"""`metrics.jsonl` read back, for pictures and closing lines. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]


@dataclass
class Curves:
    """A run's metrics as points (tokens so far, value).

    name: of the run.
    loss: nats per target token.
    grad_norm, lr: of each logged step.
    mfu: where the device's peak is known.
    heldout: by held-out set, bits per byte.
    sources: by source, loss.
    step, tokens: of the last step.
    seconds: spent in steps.
    best: by held-out set, (step, bits per byte) of the best evaluation; none where all are NaN.
    """

    name: str
    loss: Points = field(default_factory=list)
    grad_norm: Points = field(default_factory=list)
    lr: Points = field(default_factory=list)
    mfu: Points = field(default_factory=list)
    heldout: dict[str, Points] = field(default_factory=dict)
    sources: dict[str, Points] = field(default_factory=dict)
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: dict[str, tuple[int, float]] = field(default_factory=dict)


def read_curves(metrics: Path, name: str) -> Curves:
    """The curves of a `metrics.jsonl`. RuntimeError where it cannot be read or has no step with a loss."""
    curves = Curves(name)
    evaluations: list[dict[str, Any]] = []
    tokens_at: dict[int, int] = {}
    try:
        with metrics.open() as lines:
            for number, line in enumerate(lines, 1):
                record = _record(line)
                if record is None:
                    raise RuntimeError(
                        f"{metrics}, line {number}: not a JSON object with a step; restore the file"
                    )
                if "eval" in record:
                    evaluations.append(record)
                elif "tokens" in record:
                    _add_step(curves, record)
                    tokens_at[record["step"]] = record["tokens"]
    except OSError as error:
        raise RuntimeError(f"{metrics} cannot be read: {error.strerror}; is it a run folder's?") from None
    if not curves.loss:
        raise RuntimeError(f"{metrics}: no step with a loss to draw; has the run begun?")
    for record in evaluations:
        # A step that was not logged has no count of its tokens: by proportion.
        at = tokens_at.get(record["step"], record["step"] * curves.tokens / max(1, curves.step))
        for heldout, values in record["eval"].items():
            _add_evaluation(curves, heldout, record["step"], at, values)
    return curves


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _add_step(curves: Curves, record: dict[str, Any]) -> None:
    tokens = record["tokens"]
    # `step_seconds` is the mean of the steps since the line before, of which there are `train.log_every`.
    curves.seconds += (record.get("step_seconds") or 0.0) * (record["step"] - curves.step)
    curves.step, curves.tokens = record["step"], tokens
    for key in ("loss", "grad_norm", "lr", "mfu"):
        if record.get(key) is not None:
            getattr(curves, key).append((tokens, record[key]))
    for source, values in (record.get("sources") or {}).items():
        if values.get("loss") is not None:
            curves.sources.setdefault(source, []).append((tokens, values["loss"]))


def _add_evaluation(curves: Curves, heldout: str, step: int, at: float, values: dict[str, Any]) -> None:
    if "bits_per_byte" in values:
        bits = math.nan if values["bits_per_byte"] is None else values["bits_per_byte"]  # see `sinks.encode`
        curves.heldout.setdefault(heldout, []).append((at, bits))
        if bits < curves.best.get(heldout, (0, math.inf))[1]:
            curves.best[heldout] = (step, bits)
