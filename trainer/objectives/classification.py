"""Supervised classification of pictures, or of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import ModelInputs
from trainer.models.pairs import PoolsText, TextPool
from trainer.models.pictures import HasClasses, pictures_of
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.pairs import text_weights
from trainer.objectives.picture_config import ClassificationConfig, class_measures
from trainer.objectives.pictures import picture_inputs


class Classification:
    """The cross-entropy of a row's class. Rows without a label, and padding rows, are not counted.

    With weights of classes a row's loss and its count are multiplied by its class's weight while training, so
    that the loss is the weighted mean. The weights are scaled to a mean of 1, which does not change it.
    """

    def __init__(self, cfg: ClassificationConfig, context: ObjectiveContext) -> None:
        model: object = context.model
        assert isinstance(model, HasClasses)
        self._smoothing, self._classes = cfg.label_smoothing, model.classes
        self._pictures = pictures_of(model)
        self._weights: Tensor | None = None
        if context.class_weights:
            weights = torch.tensor(context.class_weights, dtype=torch.float64)
            self._weights = (weights / weights.mean()).to(torch.float32)
        self._pool: TextPool = model.pool if isinstance(model, PoolsText) else "mean"

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the pictures or the tokens, and for the loss `label` [rows], -1 for none."""
        if self._pictures is not None:
            fed = picture_inputs(tensors["image"], self._pictures)
            return replace(fed, kwargs=fed.kwargs | {"label": tensors["label"]})
        tokens = tensors["tokens"]
        kwargs = {name: tensors[name] for name in ("positions", "documents", "label")}
        kwargs["weights"] = text_weights(tensors["length"][:, None], tokens.shape[1], self._pool)
        return ModelInputs(tokens, kwargs, {"positions": 1, "weights": 2})

    def features(self, inputs: ModelInputs) -> int:
        """Implements `common.objective.TakesFeatures`: a logit for each class."""
        return self._classes

    def targets(self, inputs: ModelInputs) -> Tensor:
        """Implements `common.objective.WeighsTargets`."""
        return (inputs.kwargs["label"] >= 0).to(torch.float32)

    @property
    def measures(self) -> tuple[str, ...]:
        """Implements `common.objective.Measures`: `ClassificationConfig.figures` takes them."""
        of_classes = (name for number in range(self._classes) for name in class_measures(number))
        return ("top_1", *of_classes)

    def measure(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        label, predicted = inputs.kwargs["label"], output.argmax(dim=1)
        counted = label >= 0
        label, predicted = label[counted], predicted[counted]
        hits = torch.bincount(label[label == predicted], minlength=self._classes)
        taken = torch.bincount(predicted, minlength=self._classes)
        labelled = torch.bincount(label, minlength=self._classes)
        of_classes = torch.stack((hits, taken, hits, labelled), dim=1).view(-1, 2)
        total = torch.stack((hits.sum(), labelled.sum()))[None]
        return torch.cat((total, of_classes)).to(torch.float64)

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's nats, and 1 for a row with a label. output: logits [rows, classes]."""
        label = inputs.kwargs["label"]
        counted = (label >= 0).to(torch.float32)
        if self._weights is not None and torch.is_grad_enabled():  # evaluations weigh rows alike
            counted = counted * self._weights.to(label.device)[label.clamp(min=0)]
        exact = output.to(torch.promote_types(output.dtype, torch.float32))
        smoothing = self._smoothing if torch.is_grad_enabled() else 0.0  # none in evaluations
        losses = F.cross_entropy(exact, label.clamp(min=0), reduction="none", label_smoothing=smoothing)
        return losses * counted, counted
