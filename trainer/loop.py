"""The training loop. Read this file first: everything else is called from here.

One step: the engine turns this data rank's micro-batches into one optimiser update of the whole model,
whatever the layout; the meter writes the step down; `decide` says what follows. No rank, mesh axis or file
format is visible here.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from common.retry import repeats
from data.stream.batch import Batch
from parallel.engine import Engine, StepResult
from trainer.checkpoint.manager import Checkpointer
from trainer.config.run_config import RunConfig
from trainer.decide import SAVE_AND_STOP, Decision, History, Then, after_evaluation, decide
from trainer.evaluation.best import Best, figures_of
from trainer.evaluation.evaluate import Evaluator
from trainer.metrics.meter import Meter
from trainer.optim.schedule import learning_rate
from trainer.ranks import on_every_rank
from trainer.state import TrainState
from trainer.steps import Steps

MOST_SKIPPED_STEPS = 100  # fp16's loss scale has fallen from 2^16 to its least by then


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
    best: Best | None = None,
) -> Decision:
    """Train from `state` to `cfg.train.steps`; return the decision that ended the training.

    DONE: the last step is done, or more are no use by `finetune.patience`; the state is saved. STOP: some
    rank was asked to stop (a preemption signal); the state is saved, and running the same command again
    continues. The request travels with the step's one reduction, so all ranks leave together. REWIND: the
    gradient of the first update from `state` on is not finite, and nothing was changed; going back to an
    older checkpoint is left to the caller.

    engine: holds the model as it is at `state`.
    batches: the steps from `state` on.
    state: counts each step that is made.
    stopping: whether this rank was asked to stop.
    best: the best evaluation so far.

    Raises:
        RuntimeError: a later gradient is not finite, with the step and its sequences; or nothing to train on.
    """
    steps = cfg.train.steps
    history, best = History(), best or Best()

    def evaluation_due() -> bool:
        return evaluator.due(state.step, last=state.step == steps)

    def evaluate() -> bool:
        """Return whether the evaluation was finished; False where a request to stop cut it short."""
        if (results := evaluator(engine, stopping)) is not None:
            meter.evaluation(state, results, evaluator.bias)
            best.add(state.step, figures_of(results))
        return results is not None

    decision = Decision(Then.GO_ON if state.step < steps else Then.DONE)
    if evaluation_due() and not evaluate():  # the run that was resumed was stopped in the middle of one
        return Decision(Then.STOP)
    if best.is_over:
        return Decision(Then.DONE)

    for micro_batches in islice(batches, max(0, steps - state.step)):  # not one more: the data may end there
        lr = learning_rate(state.step, cfg.optim, steps)
        result = take_step(engine, batches, micro_batches, state, cfg, lr=lr, stop=stopping())
        history.add(result)
        if not result.fault:
            meter.step(state, result, lr=lr, micro_batches=micro_batches)

        decision = decide(
            result,
            state,
            history,
            steps=steps,
            global_batch=cfg.train.global_batch,
            evaluation_due=evaluation_due(),
            checkpoint_due=checkpointer.due(state.step),
        )
        if decision.then is Then.FAIL:
            raise on_every_rank(repeats(RuntimeError(decision.why)))
        if decision.evaluate:
            decision = after_evaluation(decision, best, state, cfg) if evaluate() else SAVE_AND_STOP
        if decision.save:
            checkpointer.keep_best(best.step if cfg.finetune.keep_best else 0)
            checkpointer.save(state, engine, is_last=decision.then is Then.DONE)
        if decision.then is not Then.GO_ON:
            if decision.then is Then.DONE and state.step < steps:
                meter.ended_early(state, decision.why)
            break
    checkpointer.wait()
    return decision


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
    """Take the next step from `state`, which then counts it, unless the step has a fault."""
    result = engine.step(micro_batches, lr=lr, stop=stop, exchange=batches.needs_exchange)
    batches.exchange_next(result.exchange)
    if not result.fault:
        state.advance(sequences=cfg.train.global_batch, tokens=result.targets)
    return result


def allows_a_step(engine: Engine, batches: Steps, state: TrainState, cfg: RunConfig) -> bool:
    """Whether an update can be made from `state`, which the engine holds: by making it, and nothing else.

    Steps that are skipped, as where a loss scale is still too high, are no update yet.
    """
    for micro_batches in islice(batches, min(MOST_SKIPPED_STEPS, max(0, cfg.train.steps - state.step))):
        lr = learning_rate(state.step, cfg.optim, cfg.train.steps)
        result = take_step(engine, batches, micro_batches, state, cfg, lr=lr, stop=False)
        if result.fault:
            return False
        if not result.skipped:
            break
    return True
