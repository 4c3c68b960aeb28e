"""`germinal verify`: is this layout's run the run of one process? Law 1, checked on the user's own config.

One process runs the first K steps and saves every state; then the layout runs them, and after each step
every rank holds its own pieces (replicas too) against the saved ones. Compared are the loss, the gradient
norm, each parameter's update since the start, and each optimiser moment, which is linear in the gradients
and so shows a wrong one that Adam's scale-free update would hide.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.loader import Loader
from parallel import runtime as runtimes
from parallel.engine import Chunk, Engine, StepResult
from parallel.runtime import Runtime
from trainer import config as configs
from trainer import traffic
from trainer.__main__ import DONE, FAILED, WRONG, complain, nobody_reads
from trainer.checkpoint import folder as folders
from trainer.checkpoint.store import load, write_part
from trainer.config import RunConfig
from trainer.interrupts import LeaveAtOnce
from trainer.metrics.sinks import encode
from trainer.run import gather, make_engine, open_stream
from trainer.schedule import learning_rate

CURVE = "curve.json"


@dataclass(frozen=True)
class Tolerance:
    """The largest relative difference that rounding may explain; docs/verify.md argues each.

    scalar: loss and gradient norm. moment: a tensor of optimiser state, ‖a-b‖/‖b‖. update: a parameter's
    change since the start, likewise; looser, because Adam turns the sign of a nearly cancelled gradient
    into a whole step.
    """

    scalar: float
    moment: float
    update: float


TOLERANCES = {
    "fp32": Tolerance(scalar=1e-5, moment=1e-4, update=2e-3),
    "bf16": Tolerance(scalar=5e-3, moment=5e-2, update=1e-1),
    "fp16": Tolerance(scalar=1e-3, moment=2e-2, update=1e-1),
}


@dataclass(frozen=True)
class Difference:
    """One tensor after one step on one rank, against the reference."""

    step: int
    name: str
    rank: int
    error: float
    limit: float


def record(cfg: RunConfig, runtime: Runtime, steps: int, reference: Path) -> None:
    """Run `steps` steps in this one process; leave the curve and every state in `reference`.

    RuntimeError where the run diverges.
    """
    with ExitStack() as stack:
        engine, batches = _open(cfg, runtime, stack)
        _save(engine, reference, 0)
        curve = []
        for step in range(steps):
            result = _step(engine, batches, cfg, step)
            curve.append(_scalars(result))
            _stop_if_diverged(result, engine, step + 1)
            _save(engine, reference, step + 1)
        (reference / CURVE).write_text(json.dumps(curve))


def _stop_if_diverged(result: StepResult, engine: Engine, step: int) -> None:
    """RuntimeError where there is nothing to hold a layout against."""
    found = _scalars(result)
    finite = all(bool(chunk.tensor.isfinite().all()) for chunk in engine.chunks())
    # A step that was skipped for fp16's loss scale is one of both runs.
    if result.fault or not finite or not (result.skipped or math.isfinite(found["loss"])):
        raise RuntimeError(
            f"one process itself diverges at step {step}: loss {found['loss']:.4g}, gradient norm "
            f"{found['grad_norm']:.4g}: lower optim.lr"
        )


def compare(
    cfg: RunConfig, runtime: Runtime, steps: int, reference: Path, *, comms: bool = False
) -> dict[str, Any]:
    """Run the same steps on this layout and hold each against `reference`; the report, the same on every
    rank.
    """
    tolerance = TOLERANCES[cfg.train.precision]
    expected = json.loads((reference / CURVE).read_text())
    rows, tensors = [], []
    with ExitStack() as stack:
        engine, batches = _open(cfg, runtime, stack)
        tensors += _differences(engine, reference, 0, runtime.rank, tolerance)
        for step in range(steps):
            with traffic.counter(engine) if comms else contextlib.nullcontext() as counter:
                found = _scalars(_step(engine, batches, cfg, step))
            rows.append({"step": step + 1, "one_process": expected[step], "layout": found})
            tensors += _differences(engine, reference, step + 1, runtime.rank, tolerance)
        # The last step's: the first ones set things up.
        sent = (
            traffic.rows(counter, engine, cfg, configs.layout(cfg, runtime.world), runtime.rank)
            if counter
            else None
        )
    worst: dict[tuple[int, str], Difference] = {}
    for mine in gather(tensors):
        for difference in mine:
            key = (difference.step, difference.name)
            if key not in worst or _severity(difference) > _severity(worst[key]):
                worst[key] = difference
    return _report(cfg, rows, list(worst.values()), tolerance, runtime.world) | {"comms": sent}


def _open(cfg: RunConfig, runtime: Runtime, stack: ExitStack) -> tuple[Engine, Iterator[Any]]:
    stream = open_stream(cfg)
    engine = make_engine(cfg, runtime, configs.layout(cfg, runtime.world))
    stack.callback(engine.close)
    loader = Loader(
        stream,
        rank=engine.data_rank,
        ranks=engine.data_ranks,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
    )
    stack.callback(loader.close)
    return engine, iter(loader)


def _step(engine: Engine, batches: Iterator[Any], cfg: RunConfig, step: int) -> StepResult:
    return engine.step(next(batches), lr=learning_rate(step, cfg.optim, cfg.train.steps))


def _scalars(result: StepResult) -> dict[str, float]:
    return {
        "loss": result.loss_sum / max(1.0, result.count),
        "grad_norm": result.grad_norm,
        "count": result.count,
    }


def _save(engine: Engine, root: Path, step: int) -> None:
    folder = root / f".tmp-{step}"
    folder.mkdir(parents=True)
    part = write_part(folder, 0, engine.chunks())
    folders.commit(folder, folders.step_folder(root, step), [part], step=step, sequences=0)


def _differences(engine: Engine, root: Path, step: int, rank: int, tolerance: Tolerance) -> list[Difference]:
    """Every chunk this rank holds, owned or not, against the reference's state after `step`."""
    found = []
    chunks = engine.chunks()
    then = _like(chunks)
    load(folders.step_folder(root, step), then)
    start = _like(chunks)
    if step:
        load(folders.step_folder(root, 0), start)
    for chunk, reference, origin in zip(chunks, then, start, strict=True):
        mine, theirs = chunk.tensor.detach().cpu().double(), reference.tensor.double()
        moment = chunk.name.startswith("optim.")
        limit = 0.0 if step == 0 else tolerance.moment if moment else tolerance.update
        base = theirs if moment or step == 0 else theirs - origin.tensor.double()
        difference = float((mine - theirs).norm())
        error = difference / max(float(base.norm()), 1e-30) if difference else 0.0
        found.append(Difference(step, chunk.name, rank, error, limit))
    return found


def _like(chunks: Sequence[Chunk]) -> list[Chunk]:
    return [dataclasses.replace(c, tensor=torch.zeros_like(c.tensor, device="cpu")) for c in chunks]


def _severity(difference: Difference) -> float:
    """How many times over its limit; infinite where the error is not finite."""
    if not math.isfinite(difference.error):
        return math.inf
    return difference.error / difference.limit if difference.limit else float(difference.error > 0) * 1e30


def _report(
    cfg: RunConfig, rows: list[dict[str, Any]], tensors: list[Difference], tolerance: Tolerance, world: int
) -> dict[str, Any]:
    problems = []
    for row in rows:
        for key, limit in (("loss", tolerance.scalar), ("grad_norm", tolerance.scalar), ("count", 0.0)):
            then, now = row["one_process"][key], row["layout"][key]
            error = abs(now - then) / max(abs(then), 1e-30) if now != then else 0.0  # of two infinities too
            row[f"{key}_error"] = error
            if not error <= limit:
                problems.append(
                    f"step {row['step']}: {key} is {now:.8g}, one process has {then:.8g}: "
                    f"{error:.2g} relative, {limit:.0e} allowed"
                )
    wrong = sorted((d for d in tensors if _severity(d) > 1.0), key=lambda d: (d.step, -_severity(d)))
    layout = configs.layout(cfg, world)
    if wrong:
        first = wrong[0]
        block = _block(first.name)
        where = "" if block is None else f" (layer {block})"
        what = (
            "initial value" if first.step == 0 else "moment" if first.name.startswith("optim.") else "update"
        )
        problems.append(
            f"step {first.step}: {first.name}{where} diverges first, on rank {first.rank} (pipeline "
            f"stage {_pipeline_rank(first.rank, world, layout.pp)}): its {what} is off by "
            f"{first.error:.2g} relative, {first.limit:.0e} allowed; {len({d.name for d in wrong})} tensors"
        )
    last = max((d.step for d in tensors), default=0)
    moments = [d for d in tensors if d.step == last and d.name.startswith("optim.")]
    updates = [d for d in tensors if d.step == last and d.name.startswith("model.")]
    return {
        "equal": not problems,
        "layout": f"{layout} {cfg.parallel.engine}",
        "precision": cfg.train.precision,
        "tolerance": dataclasses.asdict(tolerance),
        "steps": rows,
        "worst_moment": dataclasses.asdict(max(moments, key=_severity)) if moments else None,
        "worst_update": dataclasses.asdict(max(updates, key=_severity)) if updates else None,
        "problems": problems,
    }


def _block(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _pipeline_rank(rank: int, world: int, pp: int) -> int:
    return rank // (world // pp)


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    try:
        print(encode(report)) if as_json else _print(report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the latter is rich's; the verdict does not depend on a reader
        nobody_reads()


def _print(report: dict[str, Any]) -> None:
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
    for kind in ("moment", "update"):
        if worst := report[f"worst_{kind}"]:
            limit = report["tolerance"][kind]
            console.print(
                f"largest {kind} difference {worst['error']:.1e} (allowed {limit:.0e}): {worst['name']}"
            )
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


def main(arguments: list[str], at_once: LeaveAtOnce | None = None) -> int:
    """`record` in one process, then `compare` on every rank of the layout; the exit code is the verdict.

    `at_once`: what a signal does. There is nothing to save, so it stays so to the end.
    """
    at_once = at_once or LeaveAtOnce("the end").begin()
    parser = argparse.ArgumentParser(prog="python -m trainer.verify")
    parser.add_argument("part", choices=("record", "compare"))
    parser.add_argument("reference", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--comms", action="store_true")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(arguments)
    try:
        cfg = configs.load(args.config, args.overrides)
        at_once.without_a_word()
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:
        return complain(error, FAILED)
    finally:
        at_once.in_words()
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        try:
            if args.part == "record":
                record(cfg, runtime, args.steps, args.reference)
                return DONE
            report = compare(cfg, runtime, args.steps, args.reference, comms=args.comms)
        except ValueError as error:
            return complain(error, WRONG)
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)
        if not runtime.is_writer:
            return DONE
        _show(report, as_json=args.json)
        return DONE if report["equal"] else complain(f"not equal: {report['problems'][0]}", FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
