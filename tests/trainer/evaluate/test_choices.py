"""Multiple choice by likelihood: the arithmetic, the draws of solved questions, and calibration."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from trainer.evaluate.calibration import calibrate
from trainer.evaluate.choices import Question, judge, read_questions, with_shots
from trainer.evaluation.scoring import Score

QUESTIONS = [Question(f"q{n}:", (f" a{n}", f" bb{n}", " ccc"), n % 3) for n in range(8)]


def test_the_likeliest_choice_is_chosen_with_and_without_its_length() -> None:
    asked = [Question("x", ("é", "four"), 1), Question("y", ("ab", "abcdef", "abcd"), 0)]
    scores = [Score(value, 1, False) for value in (-1.9, -2.0, -3.0, -8.0, -4.0)]
    found = judge(asked, scores)
    # Bytes: é has 2, so -0.95 against -0.5; then -1.5, -1.33, -1.
    assert (found.accuracy, found.accuracy_by_byte) == (0.5, 0.5)
    shares = [np.exp([-1.9, -2.0]), np.exp([-3.0, -8.0, -4.0])]
    right = [float(share[one.answer] / share.sum()) for share, one in zip(shares, asked)]
    assert found.loss == pytest.approx(-sum(map(math.log, right)) / 2)
    assert found.questions == 2 and found.calibration.bins[-1].high == 1.0


def test_calibration_is_the_formula() -> None:
    draw = np.random.default_rng(0)
    shares = draw.dirichlet([1.0] * 4, 500)
    answers = np.array([draw.choice(4, p=row) for row in shares])
    found = calibrate(shares, answers, bins=10)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == answers
    expected = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found.error == pytest.approx(expected) and found.error < 0.1
    assert sum(one.count for one in found.bins) == 500
    # Twice as sure as it should be.
    sharper = shares**4 / (shares**4).sum(axis=1, keepdims=True)
    assert calibrate(sharper, answers).error > 2 * found.error
    assert log_loss(answers, sharper) > log_loss(answers, shares)


def test_solved_questions_are_drawn_by_seed_and_never_the_question_itself() -> None:
    contexts = with_shots(QUESTIONS, QUESTIONS, 3, seed=5)
    assert contexts == with_shots(QUESTIONS, QUESTIONS, 3, seed=5) != with_shots(QUESTIONS, QUESTIONS, 3, 6)
    for question, context in zip(QUESTIONS, contexts):
        *shots, own = context.split("\n\n")
        assert own == question.context and len(set(shots)) == 3 and question.solved not in shots
        assert set(shots) <= {one.solved for one in QUESTIONS}
    assert with_shots(QUESTIONS, QUESTIONS, 0, 5) == [one.context for one in QUESTIONS]
    twice = [QUESTIONS[0], *QUESTIONS]  # neither copy of a question is an example of its own
    assert all(QUESTIONS[0].solved not in context for context in with_shots(QUESTIONS[:1], twice, 7, 5))
    with pytest.raises(ValueError, match=r"--shots 8: there are 7 solved questions to draw from"):
        with_shots(QUESTIONS, QUESTIONS, 8, 5)


def test_an_answer_is_a_number_or_a_text(tmp_path: Path) -> None:
    lines = [
        {"context": "x", "choices": ["a", "b"], "answer": "b"},
        {"context": "", "choices": ["a", "b", "c"], "answer": 2},
    ]
    (file := tmp_path / "q.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert read_questions(file) == [Question("x", ("a", "b"), 1), Question("", ("a", "b", "c"), 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "x", "choices": ["a", "b"]}', 'has no "answer"'),
        ('{"context": "x", "choices": ["a"], "answer": 0}', '"choices" is not a list of two texts or more'),
        ('{"context": "x", "choices": ["a", "b"], "answer": 2}', '"answer" is 2: give a number from 0 to 1'),
        ('{"context": "x", "choices": ["a", "b", "a"], "answer": 0}', 'the choice "a" is there twice'),
        ('{"context": "x", "choices": ["a", "b"], "answer": "c"}', '"answer" is "c"'),
        ('{"context": 1, "choices": ["a", "b"], "answer": 0}', '"context" is not a text'),
        ("[]", "line 1: needs an object with"),
        ("", "has no question"),
    ],
)
def test_a_wrong_file_of_questions_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    (file := tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read_questions(file)
    assert message in str(caught.value)


def test_examples_are_compared_with_a_question_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they would be 10⁸ comparisons for 10,000 questions, though none is drawn."""
    compared = []
    equal = Question.__eq__
    monkeypatch.setattr(Question, "__eq__", lambda one, other: compared.append(1) or equal(one, other))
    many = [Question(f"question {number}", ("a", "b"), 0) for number in range(300)]
    with_shots(many, many, 2, seed=0)
    assert len(compared) < 3000
