"""Some steps of a run, looked into: their first batch, then the statistics of the last step, or whether the
first batch can be learnt by heart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.stream.batch import Batch
from trainer.debug import batch as batches_shown
from trainer.debug import determinism, layer_table, overfit
from trainer.debug.observer import Observer, module_of, naming_the_backward
from trainer.debug.session import Session
from trainer.loop import take_step
from trainer.optim.schedule import learning_rate
from trainer.ranks import on_every_rank


@dataclass(frozen=True)
class Wanted:
    """What to do with a run.

    steps: how many to take.
    rows: sequences of the first batch to describe.
    overfits: take all steps on the first batch.
    deterministic: with deterministic algorithms only.
    finds_anomalies: with autograd's anomaly detection.
    out: folder for the table and the picture; only of the rank that writes.
    """

    steps: int
    rows: int
    overfits: bool
    deterministic: bool
    finds_anomalies: bool
    out: Path | None


def look(run: Session, wanted: Wanted, say: Callable[[str], None]) -> bool:
    """Do what is wanted; return whether all is well. Collective.

    say: prints a line, on one rank only.

    Raises RuntimeError where a value is not finite, with the module and the direction; and whatever model,
    objective and engine raise.
    """
    with ExitStack() as stack:
        stack.enter_context(determinism.deterministic(run.cfg.seed, wanted=wanted.deterministic))
        first = next(run.steps, None)
        if first is None:
            raise on_every_rank(
                RuntimeError(f"the data ends at step {run.state.step}: there is no batch to look at")
            )
        _show_batch(run, wanted, first, say)
        stack.enter_context(_naming_the_module(run))
        differs = determinism.chance(run.engine, first)
        say(
            f"NOT DETERMINISTIC: {differs}"
            if differs
            else "two forward passes over it: the same to the last bit"
        )
        well = _overfit(run, wanted, first, say) if wanted.overfits else _steps(run, wanted, first, say)
        return well and not differs


@contextmanager
def _naming_the_module(run: Session) -> Iterator[None]:
    """Note on an error, such as torch's of two shapes that do not fit, in which module it was raised."""
    try:
        yield
    except Exception as error:
        if name := module_of(error, run.engine.stages):
            error.add_note(f"raised in the module {name}")
        raise


def _show_batch(run: Session, wanted: Wanted, first: Sequence[Batch], say: Callable[[str], None]) -> None:
    if wanted.out is None:
        return
    described = batches_shown.describe_batch(first, run.stream, rows=wanted.rows)
    for line in batches_shown.lines(described, step=run.state.step + 1, data_ranks=run.engine.data_ranks):
        say(line)
    text = json.dumps(described, indent=1, ensure_ascii=False, default=str)
    (wanted.out / "batch.json").write_text(text)


def _overfit(run: Session, wanted: Wanted, first: Sequence[Batch], say: Callable[[str], None]) -> bool:
    batch = run.cfg.train.global_batch
    numbers = range(run.state.sequences, run.state.sequences + batch)
    least = overfit.least_loss(run.stream.read(numbers))
    next_line = 1

    def told(number: int, loss: float, norm: float) -> None:
        nonlocal next_line
        if number >= next_line:
            say(f"  step {number:>4}  loss {loss:.4f}  gradient norm {norm:.3g}")
            next_line = 2 * number

    verdict = overfit.overfit(
        run.engine, first, lr=run.cfg.optim.lr, steps=wanted.steps, least=least, told=told
    )
    say(str(verdict))
    return verdict.learnt


def _steps(run: Session, wanted: Wanted, first: Sequence[Batch], say: Callable[[str], None]) -> bool:
    """Take steps, watched by hooks; show the statistics of the last."""
    cfg, has_loss_scale = run.cfg, run.cfg.train.precision == "fp16"
    plan = cfg.model.plan()
    observer = Observer(run.engine.stages, plan, has_loss_scale=has_loss_scale)
    run.engine.look_at_gradients(observer.look_at_gradients)
    with ExitStack() as stack:
        stack.callback(observer.close)
        stack.callback(run.engine.look_at_gradients, None)
        stack.enter_context(
            determinism.anomaly_detection(wanted=wanted.finds_anomalies, has_loss_scale=has_loss_scale)
        )
        stack.enter_context(naming_the_backward(observer))
        batch: Sequence[Batch] | None = first
        for left in reversed(range(wanted.steps)):
            assert batch is not None
            _step(run, observer, batch, say)
            batch = next(run.steps, None) if left else None
            if left and batch is None:
                say(f"the data ends at step {run.state.step}")
                break
    rows = layer_table.gather_rows(observer.found, run.ranks, plan)
    if wanted.out is not None:
        from trainer.debug.picture import draw

        say(f"statistics of step {run.state.step}, by layer, over the whole global batch:")
        layer_table.show(rows)
        layer_table.write_csv(rows, wanted.out / "statistics.csv")
        draw(rows, wanted.out / "statistics.png", title=f"{cfg.name}, step {run.state.step}")
    return True


def _step(run: Session, observer: Observer, batch: Sequence[Batch], say: Callable[[str], None]) -> None:
    state, cfg = run.state, run.cfg
    lr = learning_rate(min(state.step, cfg.train.steps - 1), cfg.optim, cfg.train.steps)
    observer.begin(state.step + 1, batch)
    began = time.perf_counter()
    result = take_step(run.engine, run.steps, batch, state, cfg, lr=lr, stop=False)
    seconds = time.perf_counter() - began
    if result.fault:
        raise RuntimeError(f"step {state.step + 1}: {result.fault}")
    loss = result.loss_sum / result.count if result.count else float("nan")
    say(
        f"step {state.step}: loss {loss:.4f}, gradient norm {result.grad_norm:.4g}, lr {lr:.3g}, "
        f"{seconds:.2f} s{' (skipped: no update)' if result.skipped else ''}"
    )
    if observer.overflow:
        say(f"  loss scale {result.loss_scale:g} overflowed: {observer.overflow}")
