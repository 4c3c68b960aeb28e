"""Multiple choice by likelihood: which of its choices does the model find likeliest behind a question?

Zero-shot, or with solved questions before each one (Brown et al. 2020, arXiv:2005.14165, section 2.4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json_lines, shown
from data.tokenizer.prompting import Prompting
from trainer.evaluate.calibration import Calibration, calibrate
from trainer.evaluation.scoring import Score, Scorer

BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Question:
    """A question of multiple choice.

    context: what stands before each choice; a choice that is a word of its own begins with its space.
    choices: the continuations.
    answer: the right one's place among them, from 0.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def solved(self) -> str:
        """The question with its answer."""
        return self.context + self.choices[self.answer]


@dataclass(frozen=True)
class Choices:
    """How a model has answered.

    questions: how many there were.
    accuracy: share of the questions whose right choice has the largest log-likelihood.
    accuracy_by_byte: the same of the log-likelihood divided by the choice's UTF-8 bytes, so that a long
        choice is not unlikely for its length.
    loss: mean of -log of the share that the right choice has of all choices' likelihood, in nats.
    calibration: of these shares.
    """

    questions: int
    accuracy: float
    accuracy_by_byte: float
    loss: float
    calibration: Calibration

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        own = {name: value for name, value in vars(self).items() if name != "calibration"}
        return own | self.calibration.record()


def read_questions(path: str | Path) -> list[Question]:
    """Read a file of questions, a JSON object a line:

        {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}

    "answer" may be the choice's text, too. ValueError, one line with the file and the line, where it is
    anything else.
    """
    found = read_json_lines(path, lambda entry: [_question(entry)])
    if not found:
        raise ValueError(f'{path}: has no question: give "context", "choices" and "answer", a line each')
    return found


def _question(entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise ValueError('needs an object with "context", "choices" and "answer"')
    missing = [name for name in ("context", "choices", "answer") if name not in entry]
    if missing:
        raise ValueError(f'has no "{missing[0]}"')
    context, choices, answer = entry["context"], entry["choices"], entry["answer"]
    if not isinstance(context, str):
        raise ValueError('"context" is not a text')
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise ValueError('"choices" is not a list of two texts or more')
    if len(set(choices)) < len(choices):
        twice = next(one for one in choices if choices.count(one) > 1)
        raise ValueError(f"the choice {shown(twice)} is there twice: leave one out")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f'"answer" is {shown(answer)}: give a number from 0 to {len(choices) - 1}')
    return Question(context, tuple(choices), answer)


def with_shots(
    questions: Sequence[Question], examples: Sequence[Question], shots: int, seed: int
) -> list[str]:
    """Return each question's context with so many solved ones before it, drawn from `examples` for each anew.
    The question itself is never among them.

    ValueError where there are not as many examples besides it.
    """
    places: dict[Question, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example, []).append(place)
    found = []
    for number, question in enumerate(questions):
        own = places.get(question, [])
        others = len(examples) - len(own)
        if others < shots:
            raise ValueError(f"--shots {shots}: there are {others} solved questions to draw from")
        drawn = random.Random(f"{seed} {number}").sample(range(others), shots)
        for place in own:  # numbers of the others → places among all
            drawn = [one + (one >= place) for one in drawn]
        found.append(BETWEEN_SHOTS.join([*(examples[one].solved for one in drawn), question.context]))
    return found


def answer(
    questions: Sequence[Question], contexts: Sequence[str], scorer: Scorer, texts: Prompting
) -> Choices:
    """Have the scorer's model answer. Collective: every rank has the same.

    contexts: of the questions, with what stands before them.
    """
    requests = []
    for question, context in zip(questions, contexts, strict=True):
        for choice in question.choices:
            before, behind = texts.parts(context, choice)
            requests.append(([*texts.beginning, *before], behind))
    return judge(questions, scorer(requests))


def judge(questions: Sequence[Question], scores: Sequence[Score]) -> Choices:
    """Return how the questions are answered; `scores`: of all choices of all questions, in order."""
    most = max(len(question.choices) for question in questions)
    table = np.full((len(questions), most), -np.inf)
    by_byte = np.full_like(table, -np.inf)
    at = 0
    for row, question in enumerate(questions):
        for column, choice in enumerate(question.choices):
            table[row, column] = scores[at].log_likelihood
            by_byte[row, column] = scores[at].log_likelihood / len(choice.encode())
            at += 1
    answers = np.array([question.answer for question in questions])
    shares = np.exp(table - table.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    own = shares[np.arange(len(answers)), answers]
    return Choices(
        questions=len(questions),
        accuracy=float((table.argmax(axis=1) == answers).mean()),
        accuracy_by_byte=float((by_byte.argmax(axis=1) == answers).mean()),
        loss=float(-np.log(np.maximum(own, np.finfo(float).tiny)).mean()),
        calibration=calibrate(shares, answers),
    )
