"""A layout against the reference of `germinal verify`: loss, gradient norm, updates and optimiser moments."""

import contextlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from parallel.world.runtime import Runtime
from trainer.config.run_config import RunConfig
from trainer.verify import deviation, traffic
from trainer.verify.deviation import Deviation
from trainer.verify.limits import Limits, curve_limit
from trainer.verify.reference import RECORD
from trainer.verify.report import Difference, make_report, worst
from trainer.verify.steps import open_steps, scalars


def compare(cfg: RunConfig, runtime: Runtime, reference: Path, *, comms: bool = False) -> dict[str, Any]:
    """Take the recorded steps on this layout and compare each with the reference. Collective.

    Args:
        cfg, runtime: of this layout.
        reference: the folder that `trainer.verify.reference.record` filled.
        comms: count what the last step sends.

    Returns the report of `trainer.verify.report.make_report`, the same on every rank, with the rows of
    `trainer.verify.traffic` under `comms`.
    """
    recorded = json.loads((reference / RECORD).read_text())
    rows, differences = [], []
    with ExitStack() as stack:
        run = open_steps(cfg, runtime, stack)
        start = deviation.start_weights(run.engine)
        for found in deviation.measure(run.engine, reference, 0, start, {}):
            differences.append(Difference(0, found.name, runtime.rank, found.distance, 0.0))
        for step, expected in enumerate(recorded["curve"], start=1):
            with traffic.counter(run.engine) if comms else contextlib.nullcontext() as counter:
                result = scalars(run.take(step - 1))
            limit = curve_limit(
                cfg.train.precision, recorded["curve"][:step], [one[:step] for one in recorded["nudged"]]
            )
            rows.append({"step": step, "one_process": expected, "layout": result, "limit": limit})
            limits = Limits(recorded["spread"][step - 1], cfg.train.precision)
            deviations = deviation.measure(run.engine, reference, step, start, limits.norms)
            differences += _differences(deviations, limits, step, runtime.rank)
        # Of the last step: the first steps also set things up.
        sent = traffic.rows(counter, run.engine, cfg, run.layout, runtime.rank) if counter else None
    every_ranks = worst(difference for of_rank in run.ranks.gather(differences) for difference in of_rank)
    return make_report(cfg, rows, every_ranks, runtime.world) | {"comms": sent}


def _differences(deviations: Sequence[Deviation], limits: Limits, step: int, rank: int) -> list[Difference]:
    """Return the difference of every tensor by itself, and of the common factor of every kind of tensors."""
    found = [Difference(step, one.name, rank, one.distance, limits.distance(one.name)) for one in deviations]
    kinds: dict[str, list[Deviation]] = {}
    for one in deviations:
        kinds.setdefault(deviation.kind_of(one.name), []).append(one)
    for kind, members in kinds.items():
        common = abs(limits.common_factor(members))
        found.append(Difference(step, kind, rank, common, limits.common(kind), whole_kind=True))
    return found
