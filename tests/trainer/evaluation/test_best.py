"""The best evaluation so far, and when a run ends for want of a better one."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.decide import Decision, Then, after_evaluation
from trainer.evaluation.best import Best, recorded
from trainer.state import TrainState


def cfg(*, keep_best: bool = False) -> Any:
    return SimpleNamespace(finetune=SimpleNamespace(keep_best=keep_best))


def seen(best: Best, *values: float) -> Best:
    for number, value in enumerate(values, 1):
        best.add(10 * number, {"held": {best.metric: value}})
    return best


def test_a_score_is_better_where_it_is_larger_and_a_loss_where_it_is_smaller() -> None:
    assert (seen(Best("f1", "held"), 0.5, 0.7, 0.6).step, seen(Best("loss", "held"), 0.5, 0.7, 0.4).step) == (
        20,
        30,
    )


def test_an_equal_or_unknown_figure_is_not_better() -> None:
    best = seen(Best("f1", "held", patience=3), math.nan, 0.5, 0.5, math.inf)
    assert (best.step, best.worse, best.is_over) == (20, 2, False)
    assert seen(Best("f1", "held", patience=2), 0.5, 0.5, math.nan).is_over


def test_without_patience_or_metric_a_run_goes_on() -> None:
    assert not seen(Best("f1", "held"), 0.5, 0.4, 0.3).is_over
    assert not Best().add(10, {"held": {"loss": 1.0}}) and not Best().is_over


def test_the_end_of_a_run_names_the_best_step_where_the_newest_is_another() -> None:
    best = seen(Best("f1", "held"), 0.5, 0.4)
    assert best.kept_at(20).startswith("best held: f1 0.5 after step 10, which is kept: --step 10 of export")
    assert not best.kept_at(10) and not Best("f1", "held").kept_at(20)


def test_what_follows_an_evaluation() -> None:
    over = seen(Best("f1", "held", patience=1), 0.5, 0.4)
    ended = after_evaluation(Decision(Then.GO_ON), over, TrainState(step=20), cfg())
    assert (ended.then, ended.save) == (Then.DONE, True) and "after step 10" in ended.why
    new = seen(Best("f1", "held", patience=1), 0.5, 0.6)
    assert after_evaluation(Decision(Then.GO_ON), new, TrainState(step=20), cfg(keep_best=True)).save
    assert not after_evaluation(Decision(Then.GO_ON), new, TrainState(step=20), cfg()).save
    stopped = Decision(Then.STOP, save=True)
    assert after_evaluation(stopped, over, TrainState(step=20), cfg()).then is Then.STOP


def test_a_resume_recalls_what_the_record_has(tmp_path: Path) -> None:
    best = seen(Best("f1", "held", patience=2), 0.5, 0.4)
    lines: list[dict[str, Any]] = [{"step": 10, "loss": 1.0}, {"step": 10, "eval": {"held": {"f1": 0.5}}}]
    lines += [{"step": 20, "eval": {"held": {"f1": 0.4}}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = Best("f1", "held", patience=2, value=0.9, step=70, worse=1)
    again.recall(recorded(tmp_path / "metrics.jsonl"))
    assert again == best


@pytest.mark.parametrize("value", [0.1, 1e-7, 1 / 3])
def test_a_figure_is_read_back_as_it_was(tmp_path: Path, value: float) -> None:
    line = {"step": 1, "eval": {"held": {"f1": value}}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    ((_, figures),) = recorded(tmp_path / "metrics.jsonl")
    assert figures["held"]["f1"] == value


def test_an_evaluation_of_other_sets_says_nothing_of_the_best() -> None:
    """A resume under a config whose held-out set has another name."""
    best = Best("f1", "held", patience=2)
    best.recall([(10, {"old": {"f1": 0.9}}), (20, {"held": {"f1": 0.5}}), (30, {"old": {"f1": 0.9}})])
    assert (best.value, best.step, best.worse) == (0.5, 20, 0)
