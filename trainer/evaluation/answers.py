"""Answers that a model finds in contexts, as texts: what the questions of a held-out set give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from common.objective import ModelInputs
from data.corpus.questions import Question, questions
from data.stream.heldout import HeldoutLoader
from parallel.engine import Engine
from parallel.layout.layout import Layout
from trainer.config.run_config import RunConfig
from trainer.evaluation.scoring import BATCHES
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.marked.answers import Answers
from trainer.objectives.marked.squad import compared
from trainer.ranks import Ranks

Texts = Callable[[HeldoutLoader], Mapping[str, float]]
"""Figures of a held-out set by name that need its texts; collective."""


class Spans:
    """What is read of a row: the first and the last place of its likeliest answer, that answer's score, and
    the score of no answer. Implements `common.objective.ReadsRows`.
    """

    columns = 4

    def __init__(self, objective: Answers) -> None:
        self._objective = objective

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """As the objective makes them, and the number of places before the context in each row."""
        return self._objective.inputs(tensors, sequences)

    def read(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """output: [rows, seq · 2]. Places are counted from the first token of the context."""
        return self._objective.spans(output, inputs)


@dataclass
class Found:
    """The answer to a question, over all windows of its context.

    text: the likeliest answer's.
    score: its score.
    none: the score of no answer: the least of all windows', for any window may hold the answer.
    answers: the right ones.
    """

    text: str
    score: float
    none: float
    answers: list[str]

    def figures(self) -> tuple[float, float]:
        """(exact match, F1)."""
        return compared("" if self.none >= self.score else self.text, self.answers)


def open_texts(
    cfg: RunConfig, context: ObjectiveContext, engine: Engine, layout: Layout, ranks: Ranks
) -> Texts:
    """Return what tells the figures of answers as texts; of other objectives, of nothing."""
    objective = build_objective(cfg.objective, context)
    if not isinstance(objective, Answers):
        return lambda heldout: {}
    wanted = Spans(objective)

    def figures(heldout: HeldoutLoader) -> Mapping[str, float]:
        spans = _spans(heldout, wanted, engine, BATCHES * layout.pp, ranks)
        return ranks.on_rank_zero(lambda: text_figures(_found(heldout, spans)))

    return figures


def _spans(
    heldout: HeldoutLoader, wanted: Spans, engine: Engine, together: int, ranks: Ranks
) -> list[list[float]]:
    """Return what is read of each row of a set, in the order of the rows."""
    batches, found = iter(heldout), []
    for _ in range(0, len(heldout), together):
        some = ranks.together(lambda: list(islice(batches, together)))
        # Of [data ranks, batches, rows, columns]; batch b of rank r has the rows from (b · ranks + r) · rows.
        found += engine.rows(some, wanted).transpose(0, 1).flatten(0, 2).tolist()
    return found[: heldout.rows]


def _found(heldout: HeldoutLoader, spans: list[list[float]]) -> list[Found]:
    """The answers of all questions of a set; one whose documents are left out is none."""
    row_of = {int(document): row for row, document in enumerate(heldout.row_documents())}
    found: list[Found] = []
    fresh = True
    for number, asked in enumerate(questions(heldout.corpus, 1 + max(row_of))):
        fresh = fresh or asked.window == 0
        if number in row_of:
            mine = _answer(asked, spans[row_of[number]])
            if fresh:
                found.append(mine)
            else:
                _widen(found[-1], mine)
            fresh = False
    return found


def _answer(asked: Question, span: list[float]) -> Found:
    first, last, score, none = span
    text = asked.text(int(first), int(last)) if first >= 0 else ""
    return Found(text, score if first >= 0 else -float("inf"), none, asked.answers)


def _widen(found: Found, window: Found) -> None:
    """Take what a further window of the same question says."""
    found.none = min(found.none, window.none)
    if window.score > found.score:
        found.text, found.score = window.text, window.score


def text_figures(found: list[Found]) -> dict[str, float]:
    """Return `exact_match` and `f1`, means over the questions; where some have an answer and some have none,
    also those of each kind: `f1_with_answer`, and `right_without_answer`.
    """
    figures = [one.figures() for one in found]
    sums = {"exact_match": sum(exact for exact, _ in figures), "f1": sum(f1 for _, f1 in figures)}
    means = {name: total / max(1, len(found)) for name, total in sums.items()}
    with_answer = [f1 for (_, f1), one in zip(figures, found) if one.answers]
    without = [exact for (exact, _), one in zip(figures, found) if not one.answers]
    if with_answer and without:
        means["f1_with_answer"] = sum(with_answer) / len(with_answer)
        means["right_without_answer"] = sum(without) / len(without)
    return means | {"questions": len(found)}
