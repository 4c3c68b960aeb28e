"""How well an exported model does: what its run recorded, and what `germinal evaluate` found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.evaluation.report import MEANING_OF_BIAS, figures_table, tables
from trainer.record.reading import objects


def recorded_figures(run: Path, step: int) -> Iterator[str]:
    """Yield the lines that tell the training loss and the last evaluation of a run, up to `step`."""
    loss: float | None = None
    evaluated: Mapping[str, Any] = {}
    for _, line in objects(run / "metrics.jsonl"):
        if not line or not isinstance(line.get("step"), int) or line["step"] > step:
            continue
        loss = line.get("loss", loss)
        if "eval" in line:
            evaluated = line
    yield from ("", "## Figures", "")
    if loss is None and not evaluated:
        yield from ("The run's metrics do not reach back to this step.", "")
    if loss is not None:
        yield from (f"Training loss of the last recorded step: {loss:.4g} nats a target.", "")
    if evaluated:
        yield from (f"Held-out sets after step {evaluated['step']}:", "")
        yield from figures_table("set", evaluated["eval"])
    if evaluated.get("bias"):
        yield from (f"Bias after step {evaluated['step']}. {MEANING_OF_BIAS}", "")
        yield from figures_table("pairs of", evaluated["bias"])


def evaluated_figures(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of an evaluation, without those of the data, which a card has of its own."""
    if evaluation:
        yield from ("## Evaluation", "")
        yield from tables({**evaluation, "data": []})


def read_evaluation(file: Path, run: Path, step: int) -> Mapping[str, Any]:
    """Return what a document of `germinal evaluate --out` says of a step of a run.

    ValueError where it is no such document, or has nothing of that step of that run.
    """
    try:
        every = json.loads(file.read_bytes())["runs"]
        known = [(Path(one["run"]).resolve(), one["step"], one) for one in every]
    except OSError as error:
        raise ValueError(f"--evaluation {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--evaluation {file}: is not what germinal evaluate {run} --out FILE writes"
        ) from None
    for folder, at, one in known:
        if (folder, at) == (run.resolve(), step):
            return one  # type: ignore[no-any-return]
    there = ", ".join(f"step {at} of {one['run']}" for _, at, one in known) or "nothing"
    raise ValueError(
        f"--evaluation {file}: has {there}, not step {step} of {run}: germinal evaluate {run} --step {step} "
        f"--out {file}"
    )
