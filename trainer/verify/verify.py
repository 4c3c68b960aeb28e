"""`germinal verify`: is this layout's run the run of one process? Law 1, checked on the user's own config.

One process runs the first K updates and saves every state, then runs them again from weights that are off by
a rounding (`trainer.verify.yardstick`). Then the layout runs them, and after each step every rank holds its
pieces (replicas too) against the saved ones. Compared are the loss, the gradient norm, each parameter's
update since the start, and each optimiser moment, which is linear in the gradients and so shows a wrong one
that Adam's scale-free update would hide. `trainer.verify.verdict` judges and prints.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, FAILED, WRONG
from common.standard_error import complain, nobody_reads
from data.stream.loader import Loader
from parallel.engine import Engine, StepResult
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.checkpoint import folder as folders
from trainer.checkpoint.store import write_part
from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.optim.schedule import learning_rate
from trainer.process.interrupts import LeaveAtOnce
from trainer.ranks import Ranks
from trainer.record.sinks import encode
from trainer.run import gather, make_engine, open_alike
from trainer.verify import traffic, yardstick
from trainer.verify.verdict import Difference, judge, show, worst
from trainer.verify.yardstick import NUDGES, Limits, Measured

RECORD = "record.json"
OVERFLOWS = 16
"""fp16 starts with a loss scale of 2^16 and halves it: so many steps may be skipped before an update."""


def record(cfg: RunConfig, runtime: Runtime, steps: int, reference: Path) -> None:
    """Run `steps` updates in this one process, and again from nudged weights; leave the curve, every state
    and how far a rounding in the weights carries in `reference`.

    RuntimeError where the run diverges.
    """
    curve: list[dict[str, float]] = []
    norms: list[dict[str, float]] = []
    with ExitStack() as stack:
        engine, batches = _open(cfg, runtime, stack)
        start = yardstick.begin(engine)
        _save(engine, reference, 0)
        updates = 0
        while updates < steps and len(curve) < steps + OVERFLOWS:
            result = _step(engine, batches, cfg, len(curve))
            curve.append(_scalars(result))
            _stop_if_diverged(result, engine, len(curve))
            _save(engine, reference, len(curve))
            norms.append(yardstick.norms_of(engine, start))
            updates += not result.skipped
    nudged, changed = zip(
        *(_nudged(cfg, runtime, reference, curve, norms, cfg.seed + n) for n in range(NUDGES)), strict=True
    )
    spread = [yardstick.spread_of(runs, norms[step]) for step, runs in enumerate(zip(*changed, strict=True))]
    (reference / RECORD).write_text(json.dumps({"curve": curve, "nudged": nudged, "spread": spread}))


def _nudged(
    cfg: RunConfig,
    runtime: Runtime,
    reference: Path,
    curve: list[dict[str, float]],
    norms: list[dict[str, float]],
    seed: int,
) -> tuple[list[dict[str, float]], list[list[Measured]]]:
    """The same steps from weights that are off by a rounding, drawn from `seed`: their curve, and after each
    what that changed in the tensors.
    """
    scalars, changed = [], []
    with ExitStack() as stack:
        engine, batches = _open(cfg, runtime, stack)
        yardstick.nudge(engine, cfg.train.precision, seed)
        start = yardstick.begin(engine)
        for step, expected in enumerate(curve):
            scalars.append(_scalars(_step(engine, batches, cfg, step)))
            if math.isfinite(scalars[-1]["grad_norm"]) != math.isfinite(expected["grad_norm"]):
                raise RuntimeError(
                    f"step {step + 1}: a rounding decides whether it overflows {cfg.train.precision}, so no "
                    "layout can be held to it: verify with another seed"
                )
            changed.append(yardstick.measure(engine, reference, step + 1, start, norms[step]))
    return scalars, changed


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


def compare(cfg: RunConfig, runtime: Runtime, reference: Path, *, comms: bool = False) -> dict[str, Any]:
    """Run the recorded steps on this layout and hold each against `reference`; the report, the same on every
    rank.
    """
    recorded = json.loads((reference / RECORD).read_text())
    rows, differences = [], []
    with ExitStack() as stack:
        engine, batches = _open(cfg, runtime, stack)
        start = yardstick.begin(engine)
        for measured in yardstick.measure(engine, reference, 0, start, {}):
            differences.append(Difference(0, measured.name, runtime.rank, measured.distance, 0.0))
        for step, expected in enumerate(recorded["curve"]):
            with traffic.counter(engine) if comms else contextlib.nullcontext() as counter:
                found = _scalars(_step(engine, batches, cfg, step))
            until = step + 1
            limit = yardstick.common_limit(
                cfg.train.precision, recorded["curve"][:until], [run[:until] for run in recorded["nudged"]]
            )
            rows.append({"step": until, "one_process": expected, "layout": found, "limit": limit})
            limits = Limits(recorded["spread"][step], cfg.train.precision)
            pieces = yardstick.measure(engine, reference, until, start, limits.norms)
            differences += _differences(pieces, limits, until, runtime.rank)
        # The last step's: the first ones set things up.
        sent = (
            traffic.rows(counter, engine, cfg, configs.layout(cfg, runtime.world), runtime.rank)
            if counter
            else None
        )
    everyones = worst(difference for mine in gather(differences) for difference in mine)
    return judge(cfg, rows, everyones, runtime.world) | {"comms": sent}


def _differences(pieces: list[Measured], limits: Limits, step: int, rank: int) -> list[Difference]:
    """Of every piece by itself, and of what the pieces of each kind have in common."""
    found = [Difference(step, one.name, rank, one.distance, limits.distance(one.name)) for one in pieces]
    kinds: dict[str, list[Measured]] = {}
    for one in pieces:
        kinds.setdefault(yardstick.kind_of(one.name), []).append(one)
    for kind, members in kinds.items():
        common = abs(limits.scale_of(members))
        found.append(Difference(step, kind, rank, common, limits.scale(kind), whole_kind=True))
    return found


def _open(cfg: RunConfig, runtime: Runtime, stack: ExitStack) -> tuple[Engine, Iterator[Any]]:
    layout, stream = open_alike(cfg, Ranks(runtime.rank, runtime.world, gather))
    engine = make_engine(cfg, runtime, layout)
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


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    try:
        print(encode(report)) if as_json else show(report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the latter is rich's; the verdict does not depend on a reader
        nobody_reads()


def main(arguments: list[str], at_once: LeaveAtOnce | None = None) -> int:
    """`record` in one process, then `compare` on every rank of the layout; the exit code is the verdict.

    `at_once`: what a signal does. There is nothing to save, so it stays so to the end.
    """
    at_once = at_once or LeaveAtOnce("the end").begin()
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.verify")
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
        at_once.listen()
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:
        return complain(error, FAILED)
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        try:
            if args.part == "record":
                record(cfg, runtime, args.steps, args.reference)
                return DONE
            report = compare(cfg, runtime, args.reference, comms=args.comms)
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
