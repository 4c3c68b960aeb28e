"""Where in a context the answer to a question begins and ends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import ModelInputs
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.marked.config import AnswersConfig

CONTEXT, FIRST, LAST, ONLY = 1, 2, 3, 4
"""Marks, as `data/prepare/tasks/answers.py` makes them: a token of the context; the answer's first, last,
only one.
"""


class Answers:
    """The mean of two cross-entropies, of the answer's first and of its last token, each among the tokens of
    the context and the row's first one, which stands for no answer (Devlin et al. 2018, sections 4.2 and
    4.3).

    A row whose context does not fit, so that its answer may lie in what is left out, is not counted unless
    the whole answer is there.
    """

    def __init__(self, cfg: AnswersConfig, context: ObjectiveContext) -> None:
        self._longest, self._eos = cfg.longest, context.eos

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the tokens, and for the loss `marks` [rows, seq] and `first`, `last` [rows]: the answer's
        places, 0 for no answer and -1 for a row that is not counted.
        """
        marks, length = tensors["marks"], tensors["length"]
        rows = torch.arange(len(marks), device=marks.device)
        begins, ends = (marks == FIRST) | (marks == ONLY), (marks == LAST) | (marks == ONLY)
        first, last = (there.to(torch.uint8).argmax(dim=1) for there in (begins, ends))
        seq = marks.shape[1]
        cut = (length == seq) & (tensors["following"][rows, seq - 1] != self._eos)
        whole = begins.any(dim=1) & ends.any(dim=1)
        counted = (length > 0) & (whole | ~cut) & ((marks > 0).any(dim=1))
        kwargs = {name: tensors[name] for name in ("positions", "documents", "marks")}
        kwargs |= {"first": first.where(counted, -1), "last": last.where(counted, -1)}
        return ModelInputs(tensors["tokens"], kwargs, {"positions": 1, "marks": 1})

    def features(self, inputs: ModelInputs) -> int:
        """Implements `common.objective.TakesFeatures`: two numbers for each token."""
        return inputs.kwargs["marks"].shape[1] * 2

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's nats, and 1 for a row that is counted. output: [rows, seq · 2]."""
        begins, ends = self._scores(output, inputs)
        first, last = inputs.kwargs["first"], inputs.kwargs["last"]
        counted = (first >= 0).to(begins.dtype)
        nats = F.cross_entropy(begins, first.clamp(min=0), reduction="none")
        nats = (nats + F.cross_entropy(ends, last.clamp(min=0), reduction="none")) / 2
        return nats * counted, counted

    @property
    def measures(self) -> tuple[str, ...]:
        """Implements `common.objective.Measures`: `AnswersConfig.figures` takes them."""
        return "token_exact_match", "token_f1"

    def measure(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        first, last = inputs.kwargs["first"], inputs.kwargs["last"]
        counted = first >= 0
        low, high, score, none = self._best(*self._scores(output, inputs))
        low, high = (place.where(score > none, 0) for place in (low, high))
        exact = (low == first) & (high == last) & counted
        shared = (torch.minimum(high, last) - torch.maximum(low, first) + 1).clamp(min=0)
        f1 = 2 * shared / ((high - low + 1) + (last - first + 1))
        # Place 0 is no token of an answer: right or wrong, and nothing between.
        f1 = torch.where((low == 0) | (first == 0), exact.to(f1.dtype), f1)
        sums = torch.stack((exact.sum().to(torch.float64), (f1 * counted).sum().to(torch.float64)))
        return torch.stack((sums, counted.sum().to(torch.float64).expand(2)), dim=1)

    def _scores(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Scores of each place as the first and as the last one, [rows, seq]; no place but the context's and
        the first can be chosen.
        """
        marks = inputs.kwargs["marks"]
        closed = marks < CONTEXT
        closed = closed & (torch.arange(marks.shape[1], device=marks.device) > 0)
        least = torch.finfo(output.dtype).min
        begins, ends = output.unflatten(1, (-1, 2)).unbind(dim=2)
        return begins.masked_fill(closed, least), ends.masked_fill(closed, least)

    def spans(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """Return of each row the first and the last token of the likeliest answer, counted from the context's
        first one (-1: the row has no context), the answer's score and that of no answer, float64 [rows, 4].
        """
        marks = inputs.kwargs["marks"] >= CONTEXT
        low, high, score, none = self._best(*self._scores(output, inputs))
        start = marks.to(torch.uint8).argmax(dim=1)
        places = (place.sub(start).where(marks.any(dim=1), -1).double() for place in (low, high))
        return torch.stack((*places, score, none), dim=1)

    def _best(self, begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first and the last place of each row's likeliest answer, int64 [rows], its score, and that of
        no answer, float64 [rows]. Memory: rows · seq · `longest` numbers.
        """
        begins, ends = begins.double(), ends.double()
        longest = min(self._longest, begins.shape[1])
        # Behind each place the scores of the `longest` places from it on: [rows, seq, longest].
        behind = F.pad(ends, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
        scores = begins[:, :, None] + behind
        scores[:, 0] = -torch.inf  # place 0 is no answer's
        score, best = scores.flatten(1).max(dim=1)
        first = best // longest
        return first, first + best % longest, score, begins[:, 0] + ends[:, 0]
