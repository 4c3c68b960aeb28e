"""The training loop. Read this file first: everything else is called from here.

One step: the engine turns this data rank's micro-batches into one optimiser update of the whole model,
whatever the layout; the meter writes it down; the checkpointer saves when it is time. No rank, mesh axis or
file format is visible here.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from data.stream.batch import Batch
from parallel.engine import Engine, StepResult
from trainer.checkpoint.manager import Checkpointer
from trainer.config.run_config import RunConfig
from trainer.evaluation.evaluate import Evaluator
from trainer.metrics.meter import Meter
from trainer.optim.schedule import learning_rate
from trainer.ranks import on_every_rank
from trainer.state import TrainState
from trainer.steps import Steps

MOST_EMPTY_STEPS = 100  # in a row: what comes after so many is no use waiting for
MOST_SKIPPED_STEPS = 100  # fp16's loss scale has fallen from 2^16 to its least by then


class Diverged(RuntimeError):
    """A step that is not finite; nothing was updated."""


def train(
    engine: Engine,
    batches: Steps,
    state: TrainState,
    checkpointer: Checkpointer,
    meter: Meter,
    cfg: RunConfig,
    *,
    evaluator: Evaluator,
    stopping: Callable[[], bool],
) -> bool:
    """Trains from `state` to `cfg.train.steps`; returns whether it got there.

    False means that some rank was asked to stop (a preemption signal): the state is saved, and running the
    same command again continues. The request travels with the step's one reduction, so all ranks leave
    together.

    Raises:
        Diverged: a gradient that is not finite, with the step and its sequences.
        RuntimeError: nothing to train on.
    """
    steps = cfg.train.steps

    def evaluate() -> bool:
        """The evaluation that is due, if one is; False where a request to stop cut it short."""
        if evaluator.due(state.step, last=state.step == steps):
            results = evaluator(engine, stopping)
            if results is None:
                return False
            meter.evaluation(state, results)
        return True

    empty = 0
    stop = not evaluate()  # the run that was resumed may have been stopped in the middle of one
    for micro_batches in islice(batches, max(0, steps - state.step)):  # not one more: the data may end there
        if stop:
            break
        lr = learning_rate(state.step, cfg.optim, steps)
        result = take_step(engine, batches, micro_batches, state, cfg, lr=lr, stop=stopping())
        meter.step(state, result, lr=lr, micro_batches=micro_batches)

        empty = 0 if result.count else empty + 1
        if empty == MOST_EMPTY_STEPS or (state.step == steps and not state.tokens):
            raise on_every_rank(
                RuntimeError(
                    f"step {state.step}: no target was counted in {empty} steps, for all sequences are "
                    "masked or padding: see quarantine.jsonl and germinal data verify, and restore the corpus"
                )
            )
        stop = result.stop or not evaluate()
        if checkpointer.due(state.step) or state.step == steps or stop:
            checkpointer.save(state, engine)
    checkpointer.wait()
    return state.step >= steps and not stop


def take_step(
    engine: Engine,
    batches: Steps,
    micro_batches: Sequence[Batch],
    state: TrainState,
    cfg: RunConfig,
    *,
    lr: float,
    stop: bool,
) -> StepResult:
    """The next step from `state`, which then counts it. Diverged where it is not finite."""
    result = engine.step(micro_batches, lr=lr, stop=stop, exchange=batches.needs_exchange)
    batches.exchange_next(result.exchange)
    if result.fault:
        loss = result.loss_sum / max(1.0, result.count)
        raise on_every_rank(
            Diverged(
                f"step {state.step + 1}, sequences {state.sequences} to "
                f"{state.sequences + cfg.train.global_batch - 1}: {result.fault}, loss {loss:.4g}: nothing "
                "was updated; lower optim.lr, or see the text with germinal data inspect --sequence"
            )
        )
    state.advance(sequences=cfg.train.global_batch, tokens=round(result.count))
    return result


def allows_a_step(engine: Engine, batches: Steps, state: TrainState, cfg: RunConfig) -> bool:
    """Whether an update can be made from `state`, which the engine holds: by making it, and nothing else.

    Steps that are skipped, as where a loss scale is still too high, are no update yet.
    """
    for micro_batches in islice(batches, min(MOST_SKIPPED_STEPS, max(0, cfg.train.steps - state.step))):
        lr = learning_rate(state.step, cfg.optim, cfg.train.steps)
        try:
            result = take_step(engine, batches, micro_batches, state, cfg, lr=lr, stop=False)
        except Diverged:
            return False
        if not result.skipped:
            break
    return True
