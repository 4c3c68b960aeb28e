"""Which fine-tunings a comparison has, which rate and which labels each gets, and what the table says."""

import math
from pathlib import Path

import pytest

from trainer.config.transferring import TransferConfig
from trainer.transfer import plan, table
from trainer.transfer.labels import shuffled, stratified
from trainer.transfer.plan import PRETRAINED, RANDOM, VALIDATION, Trial
from trainer.transfer.records import Records


def config(**changes: object) -> TransferConfig:
    rates = {"full": [0.1, 0.2], "probe": [0.5]}
    given = {"name": "t", "methods": ["full", "probe"], "labels": [8, 16, 64], "rates": rates, "seeds": 3}
    return TransferConfig(**(given | {"rates_at": [8, 64]} | changes))


def scores_where(best: dict[str, float], cfg: TransferConfig) -> dict[str, float]:
    """Scores of `rate_trials` by which each kind of weights has another best rate."""
    return {trial.key: float(trial.rate == best[trial.arm]) for trial in plan.rate_trials(cfg)}


def test_pretrained_and_random_weights_each_get_the_rate_that_suits_them_by_validation_alone() -> None:
    cfg = config()
    tried = list(plan.rate_trials(cfg))
    assert {trial.on for trial in tried} == {VALIDATION} and {trial.labels for trial in tried} == {8, 64}
    assert {trial.method for trial in tried} == {"full"}  # of one rate nothing is chosen
    assert not {trial.seed for trial in tried} & set(range(cfg.seeds))
    scored = list(plan.score_trials(cfg, scores_where({PRETRAINED: 0.1, RANDOM: 0.2}, cfg)))
    rates = {(trial.arm, trial.method): trial.rate for trial in scored}
    assert rates == {
        (PRETRAINED, "full"): 0.1,
        (RANDOM, "full"): 0.2,
        (PRETRAINED, "probe"): 0.5,
        (RANDOM, "probe"): 0.5,
    }
    kinds = {(trial.arm, trial.method, trial.labels, trial.seed) for trial in scored}
    assert len(kinds) == len(scored) == 2 * 2 * 3 * 3


def test_the_rate_is_that_of_the_nearest_number_of_labels() -> None:
    cfg = config()
    scores = {trial.key: float((trial.rate == 0.1) == (trial.labels == 8)) for trial in plan.rate_trials(cfg)}
    found = {labels: plan.rate(cfg, scores, RANDOM, "full", labels) for labels in cfg.labels}
    assert found == {8: 0.1, 16: 0.1, 64: 0.2}


def test_an_order_is_a_permutation_that_the_key_decides_alone() -> None:
    numbers = range(100)
    assert sorted(shuffled(numbers, "labels 0")) == list(numbers)
    assert shuffled(numbers, "labels 0") == shuffled(list(reversed(numbers)), "labels 0")
    assert shuffled(numbers, "labels 0")[:5] == [83, 50, 1, 73, 93]  # the same for ever
    assert shuffled(numbers, "labels 0") != shuffled(numbers, "labels 1")


def test_labels_take_a_document_of_each_class_in_turn_as_long_as_there_is_one() -> None:
    classes = [0] * 20 + [1] * 3 + [2] * 10
    order = stratified(range(33), classes, "labels 0")
    assert sorted(order) == list(range(33))
    taken = [classes[number] for number in order]
    assert [sorted(taken[at : at + 3]) for at in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert len({tuple(taken[at : at + 3]) for at in (0, 3, 6)}) > 1  # not always the same class first
    assert sorted(taken[9:23]) == [0] * 7 + [2] * 7 and taken[23:] == [0] * 10
    assert stratified(range(33), classes, "labels 1")[:5] != order[:5]


def test_a_difference_wins_by_the_rule_alone() -> None:
    assert table.difference([0.8, 0.82, 0.81], [0.5, 0.52, 0.51]).verdict == "wins"
    assert table.difference([0.5, 0.52, 0.51], [0.8, 0.82, 0.81]).verdict == "loses"
    # Always a little better, by less than the seeds' spread.
    assert table.difference([0.61, 0.71, 0.81], [0.60, 0.70, 0.80]).verdict == "even"
    # Larger than both spreads, and the interval reaches 0, for seeds do not agree.
    wide = table.difference([0.9, 0.6], [0.5, 0.5])
    assert wide.low < 0 < wide.mean and wide.verdict == "even"


def test_the_interval_is_students() -> None:
    """Five differences of mean 0.3 and standard deviation 0.1: 2.776 · 0.1 / √5."""
    pairs = [0.3 + 0.1 * each / math.sqrt(2.5 / 4) for each in (-1, -0.5, 0, 0.5, 1)]
    found = table.difference(pairs, [0.0] * 5)
    assert found.mean == pytest.approx(0.3)
    assert found.high - found.mean == pytest.approx(2.776 * 0.1 / math.sqrt(5))


def test_the_table_has_every_score_and_says_which_classes_were_seen(tmp_path: Path) -> None:
    cfg = config(labels=[8], methods=["probe"], seeds=2, run_dir=str(tmp_path))
    records = Records(cfg)
    for arm, value in ((PRETRAINED, 0.9), (RANDOM, 0.4)):
        for seed in range(2):
            trial = Trial(arm, "probe", 8, seed, 0.5, plan.HELDOUT)
            assert not records.has(trial)
            records.add(trial, {"top_1": value + seed / 100, "loss": 9.0}, 1.5)
            assert records.has(trial)
    records.note_begun({8: [5, 7]}, 10)
    made = table.make(records)
    (row,) = made.rows
    assert (row.pretrained, row.random) == ([0.9, 0.9 + 0.01], [0.4, 0.4 + 0.01])
    assert (row.scratch, row.to_scratch) == ([], None)
    text = table.markdown(made)
    assert "| probe | 8 | 6 of 10 | 0.905 ± 0.007 | 0.405 ± 0.007 | +0.500 [+0.500, +0.500] | wins |" in text
    assert table.RULE in text
    assert made.cpu_seconds == 6.0
