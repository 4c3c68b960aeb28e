"""The verdict of `germinal verify`: which differences are above their limit, as a document and as tables."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from parallel.layout.layout import Layout
from trainer.config import checks
from trainer.config.run_config import RunConfig
from trainer.verify.deviation import kind_of


@dataclass(frozen=True)
class Difference:
    """One rank's tensor after one step, or the common factor of its tensors of one kind.

    step: steps done; 0: the initial values.
    name: the tensor's, or with `whole_kind` the kind's.
    rank: the rank that measured the error.
    error: the distance, or the absolute value of the common factor (see `trainer.verify.deviation`).
    limit: the largest error that is no fault (see `trainer.verify.limits`).
    whole_kind: this is a common factor.
    """

    step: int
    name: str
    rank: int
    error: float
    limit: float
    whole_kind: bool = False

    @property
    def severity(self) -> float:
        """The error over its limit; infinite where the error is not finite."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error / self.limit if self.limit else float(self.error > 0) * 1e30

    @property
    def is_moment(self) -> bool:
        return kind_of(self.name) != "model"

    @property
    def what(self) -> str:
        """What was compared, in a message."""
        if self.whole_kind:
            return "common factor"
        return "initial value" if self.step == 0 else "moment" if self.is_moment else "update"


def worst(differences: Iterable[Difference]) -> list[Difference]:
    """Return the most severe difference of each tensor after each step, over all ranks."""
    found: dict[tuple[int, str], Difference] = {}
    for one in differences:
        key = (one.step, one.name)
        if key not in found or one.severity > found[key].severity:
            found[key] = one
    return list(found.values())


def make_report(
    cfg: RunConfig, rows: list[dict[str, Any]], tensors: Sequence[Difference], world: int
) -> dict[str, Any]:
    """Return the report, a JSON document; `problems` is empty where the layout is equal.

    Args:
        cfg: of the layout.
        rows: {step, one_process, layout, limit} of each step, to which the relative errors are added.
        tensors: the worst differences.
        world: number of ranks.
    """
    layout = checks.layout(cfg, world)
    problems = [problem for row in rows for problem in _add_errors(row)]
    problems += _first_to_diverge(tensors, layout)
    last = max((d.step for d in tensors), default=0)
    ending = [d for d in tensors if d.step == last]
    kinds = {
        "moment": [d for d in ending if d.is_moment and not d.whole_kind],
        "update": [d for d in ending if not d.is_moment and not d.whole_kind],
        "factor": [d for d in ending if d.whole_kind],
    }
    return {
        "equal": not problems,
        "layout": f"{layout} {cfg.parallel.engine}",
        "precision": cfg.train.precision,
        "steps": rows,
        **{f"worst_{kind}": _most_severe(some) for kind, some in kinds.items()},
        "problems": problems,
    }


def _add_errors(row: dict[str, Any]) -> list[str]:
    """Add the relative errors of loss, gradient norm and count to a row; return those above the limit."""
    problems = []
    for key, limit in (("loss", row["limit"]), ("grad_norm", row["limit"]), ("count", 0.0)):
        then, now = row["one_process"][key], row["layout"][key]
        error = abs(now - then) / max(abs(then), 1e-30) if now != then else 0.0  # of two infinities too
        row[f"{key}_error"] = error
        if not error <= limit:
            problems.append(
                f"step {row['step']}: {key} is {now:.8g}, one process has {then:.8g}: "
                f"{error:.2g} relative, {limit:.1e} allowed"
            )
    return problems


def _first_to_diverge(tensors: Sequence[Difference], layout: Layout) -> list[str]:
    """Name the most severe difference of the first step that has one above its limit."""
    wrong = sorted((d for d in tensors if d.severity > 1.0), key=lambda d: (d.step, -d.severity))
    if not wrong:
        return []
    first = wrong[0]
    block = _block(first.name)
    where = "" if block is None else f" (layer {block})"
    count = len({d.name for d in wrong if not d.whole_kind})
    return [
        f"step {first.step}: {first.name}{where} diverges first, on rank {first.rank} (pipeline "
        f"rank {layout.place_of(first.rank).pp}): its {first.what} is off by "
        f"{first.error:.2g} relative, {first.limit:.1e} allowed; {count} tensors"
    ]


def _most_severe(differences: Sequence[Difference]) -> dict[str, Any] | None:
    if not differences:
        return None
    return dataclasses.asdict(max(differences, key=lambda one: one.severity))


def _block(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['layout']} against one process, {report['precision']}")
    for heading in ("step", "loss", "one process", "relative", "gradient norm", "one process", "relative"):
        table.add_column(heading, justify="right")
    for row in report["steps"]:
        a, b = row["layout"], row["one_process"]
        cells = [f"{a[k]:.6f} {b[k]:.6f} {row[f'{k}_error']:.1e}".split() for k in ("loss", "grad_norm")]
        table.add_row(str(row["step"]), *cells[0], *cells[1])
    console = Console()
    console.print(table)
    for kind in ("moment", "update", "factor"):
        if found := report[f"worst_{kind}"]:
            allowed = f"(allowed {found['limit']:.1e})"
            console.print(f"largest {kind} difference {found['error']:.1e} {allowed}: {found['name']}")
    for problem in report["problems"]:
        console.print(problem, markup=False, highlight=False)
    if report["comms"]:
        sent = Table(title="sent by rank 0 in one step")
        for heading in ("axis", "kind", "calls", "bytes", "formula"):
            sent.add_column(heading, justify="right")
        for row in report["comms"]:
            keys = ("calls", "sent_bytes", "formula_bytes")
            sent.add_row(row["axis"], row["kind"], *(f"{row[key]:,}" if key in row else "" for key in keys))
        console.print(sent)
    console.print("equal: one run, whatever the layout" if report["equal"] else "NOT EQUAL")
