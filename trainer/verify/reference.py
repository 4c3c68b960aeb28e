"""The reference of `germinal verify`: the first steps on one process, and again from nudged weights."""

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from parallel.engine import Engine, StepResult
from parallel.world.runtime import Runtime
from trainer.checkpoint import folder as folders
from trainer.checkpoint.store import write_part
from trainer.config.run_config import RunConfig
from trainer.verify import deviation, limits
from trainer.verify.deviation import Deviation
from trainer.verify.steps import open_steps, scalars

RECORD = "record.json"
OVERFLOWS = 16
"""fp16 starts with a loss scale of 2^16 and halves it: so many steps may be skipped before an update."""

NUDGED_RUNS = 3
"""One alone is lucky too often: where a rounding decides whether a few elements of a tensor change much or
not at all, it may be the run in which they do not."""

Curve = list[dict[str, float]]
"""{loss, grad_norm, count} of each step."""


def record(cfg: RunConfig, runtime: Runtime, steps: int, reference: Path) -> None:
    """Make `steps` updates in this one process, then the same from nudged weights.

    Writes into the folder `reference`: the state before the first step and after each; and `record.json` with
    the `curve`, the curves of the `nudged` runs, and after each step the `spread` (`limits.Spread`).

    Raises RuntimeError where the run diverges.
    """
    cfg = with_other_micro_batch(cfg)
    curve: Curve = []
    norms: list[dict[str, float]] = []
    with ExitStack() as stack:
        run = open_steps(cfg, runtime, stack)
        start = deviation.start_weights(run.engine)
        _save(run.engine, reference, 0)
        updates = 0
        while updates < steps and len(curve) < steps + OVERFLOWS:
            result = run.take(len(curve))
            curve.append(scalars(result))
            _stop_if_diverged(result, run.engine, len(curve))
            _save(run.engine, reference, len(curve))
            norms.append(deviation.norms_of(run.engine, start))
            updates += not result.skipped
    nudged, changed = zip(
        *(_nudged_run(cfg, runtime, reference, curve, norms, cfg.seed + n) for n in range(NUDGED_RUNS)),
        strict=True,
    )
    spread = [limits.spread_of(runs, norms[step]) for step, runs in enumerate(zip(*changed, strict=True))]
    (reference / RECORD).write_text(json.dumps({"curve": curve, "nudged": nudged, "spread": spread}))


def with_other_micro_batch(cfg: RunConfig) -> RunConfig:
    """Return the config with smaller micro-batches: of the largest proper divisor of their rows.

    In a model whose rows see one another in a micro-batch, they would see the same ones on every layout that
    cuts the global batch as one process does, and nothing would show. Where micro-batches are of one row, it
    sees no other.
    """
    rows = cfg.train.micro_batch
    fewer = next((size for size in range(rows // 2, 0, -1) if rows % size == 0), rows)
    return replace(cfg, train=replace(cfg.train, micro_batch=fewer))


def _nudged_run(
    cfg: RunConfig,
    runtime: Runtime,
    reference: Path,
    curve: Curve,
    norms: list[dict[str, float]],
    seed: int,
) -> tuple[Curve, list[list[Deviation]]]:
    """Take the same steps from weights that are off by a rounding each.

    Args:
        cfg, runtime: of the reference.
        reference: folder of the reference's states.
        curve: the reference's.
        norms: after each step, ‖b‖ of the reference's tensors.
        seed: draws the roundings.

    Returns the curve, and after each step the tensors' deviations from the reference.
    """
    found, changed = [], []
    with ExitStack() as stack:
        run = open_steps(cfg, runtime, stack)
        _nudge(run.engine, cfg.train.precision, seed)
        start = deviation.start_weights(run.engine)
        for step, expected in enumerate(curve):
            found.append(scalars(run.take(step)))
            if math.isfinite(found[-1]["grad_norm"]) != math.isfinite(expected["grad_norm"]):
                raise RuntimeError(
                    f"step {step + 1}: a rounding decides whether it overflows {cfg.train.precision}, so no "
                    "layout can be held to it: verify with another seed"
                )
            changed.append(deviation.measure(run.engine, reference, step + 1, start, norms[step]))
    return found, changed


def _nudge(engine: Engine, precision: str, seed: int) -> None:
    """Move every weight by up to one rounding of the precision that the run computes in."""
    draw = torch.Generator().manual_seed(seed)
    for chunk in engine.chunks():
        if deviation.kind_of(chunk.name) == "model":
            noise = torch.rand(chunk.tensor.shape, generator=draw, dtype=torch.float64) * 2 - 1
            moved = chunk.tensor.detach().cpu().double() * (1 + noise * limits.UNIT_ROUNDOFF[precision])
            chunk.tensor.detach().copy_(moved)
    engine.load(engine.scalars())


def _stop_if_diverged(result: StepResult, engine: Engine, step: int) -> None:
    """Raise RuntimeError where the state after a step is not finite: no layout can be compared with it."""
    found = scalars(result)
    finite = all(bool(chunk.tensor.isfinite().all()) for chunk in engine.chunks())
    # A step that was skipped for fp16's loss scale is one of both runs.
    if result.fault or not finite or not (result.skipped or math.isfinite(found["loss"])):
        raise RuntimeError(
            f"one process itself diverges at step {step}: loss {found['loss']:.4g}, gradient norm "
            f"{found['grad_norm']:.4g}: lower optim.lr"
        )


def _save(engine: Engine, root: Path, step: int) -> None:
    folder = root / f".tmp-{step}"
    folder.mkdir(parents=True)
    part = write_part(folder, 0, engine.chunks())
    folders.commit(folder, folders.step_folder(root, step), [part], step=step, sequences=0)
