"""What follows a step, as a table."""

from typing import Any

import pytest

from parallel.engine import StepResult
from trainer.decide import MOST_EMPTY_STEPS, Decision, History, Then, decide
from trainer.state import TrainState

NOT_FINITE = "the gradient is not finite"
DIVERGED = (
    "step 4, sequences 24 to 31: the gradient is not finite, loss 2.5: nothing was updated; lower "
    "optim.lr, or see the text with germinal data inspect --sequence"
)
NOTHING = (
    "step 3: no target was counted in {} steps, for all sequences are masked or padding: see "
    "quarantine.jsonl and germinal data verify, and restore the corpus"
)


def result(**changes: Any) -> StepResult:
    values: dict[str, Any] = {"loss_sum": 10.0, "count": 4.0, "grad_norm": 1.0, "loss_scale": 1.0}
    return StepResult(**{**values, "skipped": False, "stop": False, **changes})


def follows(
    step: StepResult, *, steps: int = 9, tokens: int = 96, history: History | None = None, **due: bool
) -> Decision:
    """After `step`, the third of `steps`, with 8 sequences each."""
    return decide(
        step,
        TrainState(3, 24, tokens),
        history or History(updated=True),
        steps=steps,
        global_batch=8,
        evaluation_due=due.get("evaluation", False),
        checkpoint_due=due.get("checkpoint", False),
    )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, Decision(Then.GO_ON)),
        ({"checkpoint": True}, Decision(Then.GO_ON, save=True)),
        ({"evaluation": True}, Decision(Then.GO_ON, evaluate=True)),
        ({"evaluation": True, "checkpoint": True}, Decision(Then.GO_ON, evaluate=True, save=True)),
        ({"steps": 3}, Decision(Then.DONE, save=True)),
        ({"steps": 3, "evaluation": True}, Decision(Then.DONE, evaluate=True, save=True)),
    ],
    ids=str,
)
def test_a_step_is_followed_by_what_is_due(case: dict[str, Any], expected: Decision) -> None:
    assert follows(result(), **case) == expected
    skipped = result(skipped=True, grad_norm=float("inf"))
    assert follows(skipped, **case) == expected, "a lower loss scale mends a step that is skipped"


@pytest.mark.parametrize("case", [{}, {"steps": 3}, {"evaluation": True}, {"checkpoint": True}], ids=str)
def test_a_request_to_stop_saves_and_leaves_out_the_evaluation(case: dict[str, Any]) -> None:
    assert follows(result(stop=True), **case) == Decision(Then.STOP, save=True)


@pytest.mark.parametrize("case", [{}, {"steps": 3}, {"evaluation": True}, {"checkpoint": True}], ids=str)
@pytest.mark.parametrize("stop", [False, True])
def test_a_fault_saves_nothing_and_goes_back_only_before_the_first_update(
    case: dict[str, Any], stop: bool
) -> None:
    step = result(fault=NOT_FINITE, skipped=True, stop=stop)
    assert follows(step, history=History(updated=False), **case) == Decision(Then.REWIND, why=DIVERGED)
    assert follows(step, history=History(updated=True), **case) == Decision(Then.FAIL, why=DIVERGED)


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_without_targets_fails_after_so_many_steps_or_at_its_end(stop: bool) -> None:
    step = result(count=0.0, loss_sum=0.0, skipped=True, stop=stop)
    many, few = History(MOST_EMPTY_STEPS), History(3)
    assert follows(step, history=many) == Decision(Then.FAIL, why=NOTHING.format(MOST_EMPTY_STEPS))
    assert follows(step, history=few, steps=3, tokens=0) == Decision(Then.FAIL, why=NOTHING.format(3))
    assert follows(step, history=few, tokens=0).then is (Then.STOP if stop else Then.GO_ON), "more may come"
    assert follows(step, history=few, steps=3).then is (Then.STOP if stop else Then.DONE), "trained before"


def test_the_history_counts_empty_steps_in_a_row_and_remembers_an_update() -> None:
    history = History()
    for step, expected in [
        (result(count=0.0, skipped=True), History(1, False)),
        (result(count=0.0, skipped=True), History(2, False)),
        (result(skipped=True), History(0, False)),
        (result(), History(0, True)),
        (result(count=0.0, skipped=True), History(1, True)),
    ]:
        history.add(step)
        assert history == expected
