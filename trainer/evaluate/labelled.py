"""What a model gives for each row of a labelled held-out set, and the row's class."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.objective import ModelInputs, Objective, ReadsRows
from data.stream.heldout import HeldoutLoader
from trainer.evaluation.scoring import BATCHES
from trainer.trained.on_ranks import TrainedRun


class _Inputs(Protocol):
    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs: ...


class Outputs:
    """The model's output of a row as it is: logits of classes, or embeddings.

    Implements `common.objective.ReadsRows`.

    objective: makes the model's inputs.
    columns: numbers of a row.
    """

    def __init__(self, objective: Objective, columns: int) -> None:
        self._objective: _Inputs = objective
        self.columns = columns

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """As the objective makes them."""
        return self._objective.inputs(tensors, sequences)

    def read(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        """output: [rows, columns]."""
        return output


def read_set(trained: TrainedRun, heldout: HeldoutLoader, wanted: ReadsRows) -> tuple[Tensor, np.ndarray]:
    """Return (what `wanted` reads of each row with a class, float32 [rows, columns]; the classes, int
    [rows]). Collective: every rank has the same.
    """
    batches, found = iter(heldout), []
    own: list[tuple[list[int], tuple[int, ...]]] = []
    for _ in range(0, len(heldout), BATCHES * trained.layout.pp):
        some = trained.ranks.together(lambda: list(islice(batches, BATCHES * trained.layout.pp)))
        own += [(batch.tensors["label"].tolist(), batch.sequences) for batch in some]
        found.append(trained.engine.rows(some, wanted))
    every = trained.ranks.gather((trained.engine.data_rank, own))
    labels = {rank: [one for label, _ in batches for one in label] for rank, batches in every}
    numbers = {rank: [one for _, sequences in batches for one in sequences] for rank, batches in every}
    order = sorted(labels)
    label = np.array([labels[rank] for rank in order]).ravel()
    number = np.array([numbers[rank] for rank in order]).ravel()
    output = torch.cat(found, dim=1).flatten(0, 2)
    counted = np.flatnonzero((label >= 0) & (number >= 0))
    return output[torch.from_numpy(counted)], label[counted]
