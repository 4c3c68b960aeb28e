"""Mean, spread and difference over seeds, as a table for people and a document for programs.

Imports no torch.

A seed's labels, order and drawn weights are the same for pre-trained and random weights, so differences are
taken seed by seed. The interval of their mean is Student's, of 95 %.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import write_atomically
from trainer.transfer import plan
from trainer.transfer.plan import PRETRAINED, RANDOM
from trainer.transfer.records import Records

DOCUMENT, MARKDOWN = "transfer.json", "transfer.md"
RULE = (
    "wins: the difference of the means is larger than both standard deviations, and its 95 % interval over "
    "seeds is above 0; loses: the same below 0; even: neither"
)
# Two-sided 95 % quantiles of Student's t for 1, 2 … degrees of freedom; beyond the last one, the normal's.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145),
    *(2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048),
)
_NORMAL = 1.960


@dataclass(frozen=True)
class Difference:
    """Scores with pre-trained weights less others', seed by seed.

    mean: of the differences.
    low, high: the 95 % interval of the mean.
    verdict: by `RULE`.
    """

    mean: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Row:
    """One number of labels with one method.

    pretrained, random, scratch: the scores of each seed, from pre-trained weights; from random weights with
        the same method; and from random weights with every parameter trained, if that is among the methods.
    rates: the learning rates of the first two.
    to_random, to_scratch: pre-trained less the others.
    """

    method: str
    labels: int
    pretrained: list[float]
    random: list[float]
    scratch: list[float]
    rates: dict[str, float]
    to_random: Difference
    to_scratch: Difference | None


@dataclass(frozen=True)
class Made:
    """The table of a comparison.

    classes: of the corpus. seen: number of labels → how many of them are among the labels, a seed each.
    cpu_seconds: of all fine-tunings.
    """

    name: str
    metric: str
    seeds: int
    rows: list[Row]
    classes: int
    seen: dict[int, list[int]]
    trials: int
    cpu_seconds: float


def make(records: Records) -> Made:
    """Make the table of a comparison whose fine-tunings are all done."""
    cfg, found = records.cfg, records.scores()
    scores: dict[tuple[str, str, int], list[float]] = {}
    rates: dict[tuple[str, str, int], float] = {}
    for trial in plan.score_trials(cfg, found):
        place = (trial.arm, trial.method, trial.labels)
        scores.setdefault(place, []).append(found[trial.key])
        rates[place] = trial.rate
    rows = []
    for method in cfg.methods:
        for labels in sorted(cfg.labels):
            mine, other = (scores[arm, method, labels] for arm in (PRETRAINED, RANDOM))
            scratch = scores.get((RANDOM, "full", labels), [])
            rows.append(
                Row(
                    method,
                    labels,
                    mine,
                    other,
                    scratch,
                    {arm: rates[arm, method, labels] for arm in plan.ARMS},
                    difference(mine, other),
                    difference(mine, scratch) if scratch else None,
                )
            )
    classes, seen = records.classes()
    done = records.all().values()
    seconds = sum(record["cpu_seconds"] for record in done)
    seen = {number: seen[number][: cfg.seeds] for number in sorted(cfg.labels)}
    return Made(cfg.name, cfg.metric, cfg.seeds, rows, classes, seen, len(done), round(seconds, 1))


def difference(mine: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare the scores of two kinds of fine-tunings, seed by seed."""
    pairs = [one - other for one, other in zip(mine, others, strict=True)]
    mean = statistics.mean(pairs)
    freedom = len(pairs) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    reach = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
    spread = max(statistics.stdev(mine), statistics.stdev(others))
    verdict = "even"
    if abs(mean) > spread and abs(mean) > reach:
        verdict = "wins" if mean > 0 else "loses"
    return Difference(mean, mean - reach, mean + reach, verdict)


def write(made: Made, folder: Path) -> None:
    """Write the table into a folder, as Markdown and as JSON."""
    write_atomically(folder / DOCUMENT, json.dumps(document(made), indent=1).encode() + b"\n")
    write_atomically(folder / MARKDOWN, markdown(made).encode())


def document(made: Made) -> dict[str, Any]:
    """Return the table for programs: every score of every seed."""
    return asdict(made) | {"rule": RULE}


def markdown(made: Made) -> str:
    """Return the table for people."""
    head = (
        f"{made.name}: {made.metric}, mean ± standard deviation of {made.seeds} seeds; {made.trials} "
        f"fine-tunings, {made.cpu_seconds:,.0f} s of CPU time\n\n"
    )
    columns = (
        "method",
        "labels",
        "classes seen",
        "pre-trained",
        "random",
        "difference [95 %]",
        "",
        "scratch",
        "",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cells(row, made)) + " |" for row in made.rows]
    tail = (
        f"\n\n{RULE}.\nrandom: the same method on random weights. scratch: every parameter trained from "
        "random weights; its verdict is pre-trained against it.\n"
    )
    return head + "\n".join(lines) + tail


def _cells(row: Row, made: Made) -> Iterator[str]:
    seen = statistics.mean(made.seen[row.labels])
    yield from (row.method, str(row.labels), f"{seen:.3g} of {made.classes}")
    yield from (spread(row.pretrained), spread(row.random))
    found = row.to_random
    yield from (f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", found.verdict)
    scratch = row.to_scratch
    yield from (spread(row.scratch), scratch.verdict) if scratch else ("", "")


def spread(scores: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"
