"""The tag of each word: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from common.objective import ModelInputs
from trainer.models.pictures import HasClasses
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.marked.config import TagsConfig
from trainer.objectives.marked.entities import entities


class Tags:
    """The cross-entropy of the tag of each word, told from the word's first token: a token's mark is 1 + the
    number of its tag, and 0 where it has none.

    With weights of classes, a word's loss and its count are multiplied by its tag's weight while training, so
    that the loss is the weighted mean.
    """

    def __init__(self, cfg: TagsConfig, context: ObjectiveContext) -> None:
        model: object = context.model
        assert isinstance(model, HasClasses)
        self._classes, self._names = model.classes, cfg.tags
        weights = torch.tensor(context.class_weights or [1.0] * self._classes, dtype=torch.float64)
        self._weights = (weights / weights.mean()).to(torch.float32)

    def inputs(self, tensors: Mapping[str, Tensor], sequences: tuple[int, ...]) -> ModelInputs:
        """Feed the tokens, and for the loss `marks` [rows, seq]."""
        if (largest := int(tensors["marks"].max())) > self._classes:
            raise ValueError(
                f"a word has tag {largest - 1}, and model.classes={self._classes}: set it to the tags' number"
            )
        kwargs = {name: tensors[name] for name in ("positions", "documents", "marks")}
        return ModelInputs(tensors["tokens"], kwargs, {"positions": 1, "marks": 1})

    def features(self, inputs: ModelInputs) -> int:
        """Implements `common.objective.TakesFeatures`: logits of the classes of each token."""
        return inputs.kwargs["marks"].shape[1] * self._classes

    def loss(self, output: Tensor, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return each row's summed nats over its words, and their number. output: [rows, seq · classes]."""
        marks = inputs.kwargs["marks"]
        logits = output.unflatten(1, (-1, self._classes))
        tag = (marks - 1).clamp(min=0)
        nats = F.cross_entropy(logits.transpose(1, 2), tag, reduction="none")
        counted = (marks > 0).to(nats.dtype)
        if torch.is_grad_enabled():  # evaluations weigh tags alike
            counted = counted * self._weights.to(tag.device)[tag]
        return (nats * counted).sum(dim=1), counted.sum(dim=1)

    def targets(self, inputs: ModelInputs) -> Tensor:
        """Implements `common.objective.WeighsTargets`."""
        return (inputs.kwargs["marks"] > 0).sum(dim=1).to(torch.float32)

    @property
    def measures(self) -> tuple[str, ...]:
        """Implements `common.objective.Measures`: `TagsConfig.figures` takes them."""
        return ("accuracy", "precision", "recall") if self._names else ("accuracy",)

    def measure(self, output: Tensor, inputs: ModelInputs) -> Tensor:
        marks = inputs.kwargs["marks"]
        predicted = output.unflatten(1, (-1, self._classes)).argmax(dim=2) + 1
        words = marks > 0
        sums = [[int(((predicted == marks) & words).sum()), int(words.sum())]]
        if self._names:
            hits = taken = labelled = 0
            for row, there in enumerate(words):
                found, true = (entities(self._named(each[row][there])) for each in (predicted, marks))
                hits, taken, labelled = hits + len(found & true), taken + len(found), labelled + len(true)
            sums += [[hits, taken], [hits, labelled]]
        return torch.tensor(sums, dtype=torch.float64, device=output.device)

    def _named(self, marks: Tensor) -> list[str]:
        return [self._names[mark - 1] for mark in marks.tolist()]
