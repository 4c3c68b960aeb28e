"""The log-likelihood of texts under a model, on any layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.objective import IGNORED, ModelInputs
from data.stream.batch import Batch
from data.stream.rows import NO_TOKEN
from parallel.engine import Engine
from parallel.layout.layout import Layout

BATCHES = 16  # of a data rank at once, times the pipeline's length: see `trainer.evaluation.evaluate`


@dataclass(frozen=True)
class Score:
    """The score of a continuation after its context.

    log_likelihood: Σ log p of its tokens, in nats.
    tokens: their number.
    greedy: whether each of them is the likeliest after those before it; False too where the model does not
        tell (`trainer.models.config.HITS`).
    """

    log_likelihood: float
    tokens: int
    greedy: bool


class Likelihood:
    """What is read of a row of text: its summed loss in nats, and how many targets have the largest logit.

    Implements `common.objective.ReadsRows`, for models that offer "next token".

    hits: whether the model offers "hits"; without, the second number is 0.
    """

    columns = 2

    def __init__(self, *, hits: bool) -> None:
        self._hits = hits

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed `tokens` [rows, seq], with `following` [rows, seq] as `targets`."""
        following = tensors["following"]
        kwargs = {"targets": following.masked_fill(following < 0, IGNORED)}
        if self._hits:
            kwargs["hits"] = torch.zeros_like(following, dtype=torch.bool)
        return ModelInputs(tensors["tokens"], kwargs, dict.fromkeys(kwargs, 1))

    def read(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """output: [rows], each row's summed loss."""
        right = inputs.kwargs["hits"].sum(dim=1).to(output.dtype) if self._hits else torch.zeros_like(output)
        return torch.stack((output, right), dim=1)


class Scorer:
    """Scores continuations of contexts with the model of an engine. Every rank calls it with the same.

    engine: holds the model.
    layout: of the engine.
    context: the most tokens that the model reads of a row; of a longer context the first ones are left out.
    rows: rows of a batch.
    hits: see `Likelihood`.
    """

    def __init__(self, engine: Engine, layout: Layout, *, context: int, rows: int, hits: bool) -> None:
        self._engine, self._rows = engine, rows
        self.context = context
        self._together = BATCHES * layout.pp
        self._multiple = layout.tp * layout.cp  # what they divide a row by
        self._wanted = Likelihood(hits=hits)

    def __call__(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Return the score of each (context, continuation), both token ids; a context has at least one.

        ValueError where a continuation has no ids, or more than the model reads. Collective.
        """
        for before, behind in requests:
            assert before, "a context has at least the separator"
            if not 0 < len(behind) <= self.context:
                raise ValueError(
                    f"a continuation of {len(behind)} tokens cannot be scored: give 1 to {self.context}, as "
                    "the model reads so many (data.seq_len)"
                )
        # Rows of like lengths together: padding is computed too.
        order = sorted(range(len(requests)), key=lambda n: -len(requests[n][0]) - len(requests[n][1]))
        at_once = self._rows * self._engine.data_ranks
        groups = [order[first : first + at_once] for first in range(0, len(order), at_once)]
        found: dict[int, Score] = {}
        for first in range(0, len(groups), self._together):
            found |= self._score(requests, groups[first : first + self._together])
        return [found[number] for number in range(len(requests))]

    def _score(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], groups: Sequence[list[int]]
    ) -> dict[int, Score]:
        """Scores by number of the request. A group: one batch of every data rank."""
        mine = self._engine.data_rank * self._rows
        batches = [self._batch(requests, group, group[mine : mine + self._rows]) for group in groups]
        table = self._engine.rows(batches, self._wanted).tolist()
        found = {}
        for number, group in enumerate(groups):
            for place, request in enumerate(group):
                nats, right = table[place // self._rows][number][place % self._rows]
                tokens = len(requests[request][1])
                found[request] = Score(-nats, tokens, round(right) == tokens)
        return found

    def _batch(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        group: Sequence[int],
        mine: Sequence[int],
    ) -> Batch:
        """This data rank's batch of a group; all its ranks' batches have the same length of rows."""
        longest = max(len(requests[n][0]) + len(requests[n][1]) - 1 for n in group)
        length = min(self.context, -(-longest // self._multiple) * self._multiple)
        tokens = torch.zeros(self._rows, length, dtype=torch.int64)
        following = torch.full_like(tokens, NO_TOKEN)
        for row, number in enumerate(mine):
            before, behind = requests[number]
            ids = torch.tensor([*before, *behind][-length - 1 :])
            tokens[row, : len(ids) - 1] = ids[:-1]
            following[row, len(ids) - 1 - len(behind) : len(ids) - 1] = ids[-len(behind) :]
        sequences = (*mine, *[-1] * (self._rows - len(mine)))
        return Batch({"tokens": tokens, "following": following}, tuple(sequences))
