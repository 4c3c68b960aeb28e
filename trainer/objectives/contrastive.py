"""Objectives that compare the rows of the global batch: contrastive, CLIP's and SigLIP's.

A model gives two embeddings of a row, its *sides*: two views of a document or a picture, a picture and its
caption. The score of two sides is the cosine of their embeddings times a scale. See
`common.objective.ComparesRows` for how the engine calls these objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import ModelInputs
from trainer.models.pairs import LEARNT_COLUMNS, EmbedsPairs, TextPool
from trainer.models.pictures import pictures_of
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive_config import ClipConfig, ContrastiveConfig, SiglipConfig
from trainer.objectives.pairs import both_sides_there, image_text_inputs, text_pair_inputs
from trainer.objectives.pictures import picture_inputs

RECALLS = (1, 5, 10)
NOT_SCORED = -1e30
"""The score of a row that is no candidate: nothing in a softmax. -inf would give NaN where no row is one."""


class Compares:
    """What the objectives have in common: inputs, which rows count, recall.

    recall@k: the share of sides, of both kinds, whose other side is among the k nearest of all rows that are
        evaluated together. An equally near side counts as nearer.
    """

    measures = tuple(f"recall@{k}" for k in RECALLS)
    columns: ClassVar[int] = 0

    def __init__(self, cfg: Any, context: ObjectiveContext) -> None:
        model = context.model
        self._pictures = pictures_of(model)
        self._pool: TextPool | None = model.pool if isinstance(model, EmbedsPairs) else None

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        if self._pictures is None:
            assert self._pool is not None, "the model embeds nothing that is known here"
            return text_pair_inputs(tensors, self._pool)
        pictures = picture_inputs(tensors["image"], self._pictures)
        return pictures if self._pool is None else image_text_inputs(tensors, pictures, self._pool)

    def counted(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> Tensor:
        return both_sides_there(tensors, sequences, texts=self._pool is not None)

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return the losses of a batch's rows among themselves."""
        exact = output.to(torch.promote_types(output.dtype, torch.float32))
        every = torch.ones(len(exact), dtype=torch.bool, device=exact.device)
        return self.loss_of_rows(exact, exact, every, 0)

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def bounded(self, rows: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def sides(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of both sides, of length 1: each [rows, embedding]."""
        width = output.shape[1] - self.columns
        one, other = output[:, :width].unflatten(1, (2, -1)).unbind(dim=1)
        return F.normalize(one, dim=1), F.normalize(other, dim=1)

    def measure_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> Tensor:
        (a, b), (all_a, all_b) = self.sides(mine), self.sides(every)
        here = counted[first : first + len(mine)]
        sums = []
        for one, others in ((a, all_b), (b, all_a)):
            scores = one @ others.T
            own = scores.diagonal(first)[:, None]
            # Not `scores >= own`: nothing is at least NaN, and embeddings of NaN would all be found.
            nearer = (~(scores < own) & counted).sum(dim=1) - 1
            sums.append(torch.stack([((nearer < k) & here).sum() for k in RECALLS]))
        hits = (sums[0] + sums[1]).to(mine.dtype)
        return torch.stack((hits, (2 * here.sum()).expand(len(RECALLS)).to(mine.dtype)), dim=1)


class Contrastive(Compares):
    """InfoNCE in both directions, or NT-Xent; see `ContrastiveConfig`. A row counts 2: one for each side."""

    def __init__(self, cfg: ContrastiveConfig, context: ObjectiveContext) -> None:
        super().__init__(cfg, context)
        self._scale, self._both = 1 / cfg.temperature, cfg.negatives == "both_sides"

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        (a, b), (all_a, all_b) = self.sides(mine), self.sides(every)
        here = counted[first : first + len(mine)].to(mine.dtype)
        losses = torch.zeros_like(here)
        for one, same, others in ((a, all_a, all_b), (b, all_b, all_a)):
            scores = (self._scale * one @ others.T).masked_fill(~counted, NOT_SCORED)
            own = scores.diagonal(first)
            if self._both:
                among = (self._scale * one @ same.T).masked_fill(~counted, NOT_SCORED)
                among = among.diagonal_scatter(torch.full_like(own, NOT_SCORED), first)
                scores = torch.cat((scores, among), dim=1)
            losses = losses + scores.logsumexp(dim=1) - own
        return losses * here, 2 * here


class Clip(Compares):
    """Half of the cross-entropy in either direction, with a learnt scale; see `ClipConfig`."""

    columns: ClassVar[int] = LEARNT_COLUMNS["scale"]

    def __init__(self, cfg: ClipConfig, context: ObjectiveContext) -> None:
        super().__init__(cfg, context)
        self._largest = math.log(cfg.largest_scale)

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        (a, b), (all_a, all_b) = self.sides(mine), self.sides(every)
        here = counted[first : first + len(mine)].to(mine.dtype)
        # The clamp is no part of the graph: a gradient that lowers the scale must come through. `bounded`
        # takes out one that would raise it.
        log_scale = every[:, -1].mean()
        scale = (log_scale + (log_scale.detach().clamp(max=self._largest) - log_scale.detach())).exp()
        losses = torch.zeros_like(here)
        for one, others in ((a, all_b), (b, all_a)):
            scores = (scale * one @ others.T).masked_fill(~counted, NOT_SCORED)
            losses = losses + (scores.logsumexp(dim=1) - scores.diagonal(first)) / 2
        return losses * here, here

    def bounded(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient without what would raise a scale that is at its bound. Each row has an equal
        share of the scale's gradient, so its sign can be seen in each row.
        """
        held = (rows[:, -1] >= self._largest) & (gradient[:, -1] < 0)
        gradient[:, -1].masked_fill_(held, 0.0)
        return gradient


class Siglip(Compares):
    """The binary cross-entropy of a row's one side with all other sides; see `SiglipConfig`."""

    columns: ClassVar[int] = LEARNT_COLUMNS["scale_bias"]

    def __init__(self, cfg: SiglipConfig, context: ObjectiveContext) -> None:
        super().__init__(cfg, context)

    def loss_of_rows(self, mine: Tensor, every: Tensor, counted: Tensor, first: int) -> tuple[Tensor, Tensor]:
        (a, _), (_, all_b) = self.sides(mine), self.sides(every)
        here = counted[first : first + len(mine)].to(mine.dtype)
        log_scale, bias = every[:, -2:].mean(dim=0)
        scores = log_scale.exp() * a @ all_b.T + bias
        own = scores.diagonal(first)
        losses = (F.softplus(scores) * counted).sum(dim=1) - own  # softplus(-s) = softplus(s) - s
        return losses * here, here
