"""What follows a step: one pure function, and what it has to know of the steps before.

`trainer.loop.train` calls `decide` after every step and does what the decision says. All arguments are the
same on every rank, so every rank decides the same without a message. A rule about what the run does next
(after steps without targets, after a fault) belongs here and nowhere else. What a fault is, the engine has
decided before: where a gradient is not finite, `Normalisation.update` in parallel/gradients/scaling.py tells
an overflow that a lower loss scale cures from a fault (`StepResult.fault`).
"""

from dataclasses import dataclass, replace
from enum import Enum

from parallel.engine import StepResult
from trainer.config.run_config import RunConfig
from trainer.evaluation.best import Best
from trainer.state import TrainState

MOST_EMPTY_STEPS = 100  # in a row: after so many without a target, more of the same is no use waiting for


class Then(Enum):
    """How a run goes on after a step."""

    GO_ON = "take the next step"
    DONE = "the last step is done, or more steps are no use"
    STOP = "some rank was asked to stop: end, and let the same command continue"
    REWIND = "no update was made since the run was begun, resumed or rewound: go back to an older checkpoint"
    FAIL = "end with an error"


@dataclass(frozen=True)
class Decision:
    """What follows a step, in this order: an evaluation, a save, and `then`.

    then: how the run goes on.
    evaluate: evaluate on the held-out sets first.
    save: save a checkpoint, after the evaluation.
    why: the reason for REWIND or FAIL, or for DONE before the last step: one line for the user. A run that
        cannot go back fails with it.
    """

    then: Then
    evaluate: bool = False
    save: bool = False
    why: str = ""


# Some rank was asked to stop: during a step, or during the evaluation after it, which is then cut short.
SAVE_AND_STOP = Decision(Then.STOP, save=True)


@dataclass
class History:
    """What a decision has to know of the steps since the run was resumed, rewound or begun.

    empty_steps: steps in a row, the last one included, without a target that counts.
    updated: whether a step has updated the model.
    """

    empty_steps: int = 0
    updated: bool = False

    def add(self, result: StepResult) -> None:
        """Count one more step."""
        self.empty_steps = 0 if result.count else self.empty_steps + 1
        self.updated |= not result.skipped


def decide(
    result: StepResult,
    state: TrainState,
    history: History,
    *,
    steps: int,
    global_batch: int,
    evaluation_due: bool,
    checkpoint_due: bool,
) -> Decision:
    """Decide what follows a step.

    result: of the step.
    state: after the step; before it where the step has a fault, for such a step does not count.
    history: `result` included.
    steps: the last step of the run, `train.steps`.
    global_batch: sequences of the step.
    evaluation_due, checkpoint_due: whether the config asks for one after this step.
    """
    if result.fault:
        # An update by this start can have caused the fault, and then an older checkpoint leads here again.
        return Decision(
            Then.FAIL if history.updated else Then.REWIND, why=_fault(result, state, global_batch)
        )
    last = state.step == steps
    if history.empty_steps == MOST_EMPTY_STEPS or (last and not state.tokens):
        return Decision(Then.FAIL, why=_nothing_to_train_on(state, history))
    if result.stop:
        return SAVE_AND_STOP
    return Decision(Then.DONE if last else Then.GO_ON, evaluate=evaluation_due, save=checkpoint_due or last)


def after_evaluation(decision: Decision, best: Best, state: TrainState, cfg: RunConfig) -> Decision:
    """Return what follows an evaluation after a step whose decision was `decision`.

    best: `finetune.metric`, this evaluation included.
    state: after the step.
    """
    if best.is_over and decision.then is Then.GO_ON:
        why = f"no better figure in {best.worse} evaluations; the best is {best}"
        return replace(decision, then=Then.DONE, save=True, why=why)
    if cfg.finetune.keep_best and best.step == state.step:
        return replace(decision, save=True)
    return decision


def _fault(result: StepResult, state: TrainState, global_batch: int) -> str:
    loss = result.loss_sum / max(1.0, result.count)
    last = state.sequences + global_batch - 1
    return (
        f"step {state.step + 1}, sequences {state.sequences} to {last}: {result.fault}, loss {loss:.4g}: "
        "nothing was updated; lower optim.lr, or see the text with germinal data inspect --sequence"
    )


def _nothing_to_train_on(state: TrainState, history: History) -> str:
    return (
        f"step {state.step}: no target was counted in {history.empty_steps} steps, for all sequences are "
        "masked or padding: see quarantine.jsonl and germinal data verify, and restore the corpus"
    )
