"""`metrics.jsonl` read back, for pictures and closing lines. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]
UNITS = ("tokens", "images")


@dataclass
class Curves:
    """A run's metrics as points (tokens so far, value).

    name: of the run.
    loss: nats per target token; other objectives' losses are their own.
    grad_norm, lr: of each logged step.
    mfu: where the device's peak is known.
    heldout: by held-out set, bits per byte; sets that have none are left out.
    heldout_loss: by held-out set, loss.
    measures: by held-out set, the further figures of the last evaluation by name, such as an accuracy.
    sources: by source, loss.
    step, tokens: of the last step; tokens are targets.
    unit: what speed is measured in, tokens or images.
    processed: how many of that unit the model has processed.
    seconds: spent in steps.
    best: by held-out set, (step, bits per byte) of the best evaluation, or its loss where the set has no bits
        per byte; none where all are NaN.
    """

    name: str
    loss: Points = field(default_factory=list)
    grad_norm: Points = field(default_factory=list)
    lr: Points = field(default_factory=list)
    mfu: Points = field(default_factory=list)
    heldout: dict[str, Points] = field(default_factory=dict)
    heldout_loss: dict[str, Points] = field(default_factory=dict)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: dict[str, Points] = field(default_factory=dict)
    step: int = 0
    tokens: int = 0
    unit: str = "tokens"
    processed: float = 0.0
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
    seconds = (record.get("step_seconds") or 0.0) * (record["step"] - curves.step)
    curves.seconds += seconds
    for unit in UNITS:
        if rate := record.get(f"{unit}_per_second"):
            curves.unit = unit
            curves.processed += rate * seconds
    curves.step, curves.tokens = record["step"], tokens
    for key in ("loss", "grad_norm", "lr", "mfu"):
        if record.get(key) is not None:
            getattr(curves, key).append((tokens, record[key]))
    for source, values in (record.get("sources") or {}).items():
        if values.get("loss") is not None:
            curves.sources.setdefault(source, []).append((tokens, values["loss"]))


def _add_evaluation(curves: Curves, heldout: str, step: int, at: float, values: dict[str, Any]) -> None:
    known = {
        name: math.nan if value is None else value for name, value in values.items()
    }  # see `sinks.encode`
    loss, bits = known.pop("loss", math.nan), known.pop("bits_per_byte", None)
    curves.measures[heldout] = known
    curves.heldout_loss.setdefault(heldout, []).append((at, loss))
    if bits is not None:
        curves.heldout.setdefault(heldout, []).append((at, bits))
    found = loss if bits is None else bits
    if found < curves.best.get(heldout, (0, math.inf))[1]:
        curves.best[heldout] = (step, found)
