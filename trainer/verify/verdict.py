"""What `germinal verify` says of a layout: which differences are too large, the report, and how it reads."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.verify import yardstick


@dataclass(frozen=True)
class Difference:
    """One tensor after one step on one rank, against the reference; or with `whole_kind` the factor that all
    its tensors of a kind have in common.
    """

    step: int
    name: str
    rank: int
    error: float
    limit: float
    whole_kind: bool = False

    @property
    def severity(self) -> float:
        """How many times over its limit; infinite where the error is not finite."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error / self.limit if self.limit else float(self.error > 0) * 1e30

    @property
    def is_moment(self) -> bool:
        return yardstick.kind_of(self.name) != "model"

    @property
    def what(self) -> str:
        if self.whole_kind:
            return "common factor"
        return "initial value" if self.step == 0 else "moment" if self.is_moment else "update"


def worst(differences: Iterable[Difference]) -> list[Difference]:
    """Of each tensor after each step, the rank that is farthest off."""
    found: dict[tuple[int, str], Difference] = {}
    for one in differences:
        key = (one.step, one.name)
        if key not in found or one.severity > found[key].severity:
            found[key] = one
    return list(found.values())


def judge(
    cfg: RunConfig, rows: list[dict[str, Any]], tensors: Sequence[Difference], world: int
) -> dict[str, Any]:
    """The report. `rows`: of each step {step, one_process, layout, limit}; errors are added to them."""
    problems = []
    for row in rows:
        for key, limit in (("loss", row["limit"]), ("grad_norm", row["limit"]), ("count", 0.0)):
            then, now = row["one_process"][key], row["layout"][key]
            error = abs(now - then) / max(abs(then), 1e-30) if now != then else 0.0  # of two infinities too
            row[f"{key}_error"] = error
            if not error <= limit:
                problems.append(
                    f"step {row['step']}: {key} is {now:.8g}, one process has {then:.8g}: "
                    f"{error:.2g} relative, {limit:.1e} allowed"
                )
    wrong = sorted((d for d in tensors if d.severity > 1.0), key=lambda d: (d.step, -d.severity))
    layout = configs.layout(cfg, world)
    if wrong:
        first = wrong[0]
        block = _block(first.name)
        where = "" if block is None else f" (layer {block})"
        count = len({d.name for d in wrong if not d.whole_kind})
        problems.append(
            f"step {first.step}: {first.name}{where} diverges first, on rank {first.rank} (pipeline "
            f"rank {layout.pp_rank(first.rank)}): its {first.what} is off by "
            f"{first.error:.2g} relative, {first.limit:.1e} allowed; {count} tensors"
        )
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


def _most_severe(differences: Sequence[Difference]) -> dict[str, Any] | None:
    if not differences:
        return None
    return dataclasses.asdict(max(differences, key=lambda one: one.severity))


def _block(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def show(report: dict[str, Any]) -> None:
    """Print the report for a reader."""
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
