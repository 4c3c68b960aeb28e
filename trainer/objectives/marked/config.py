"""The configs of the objectives of marked tokens. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from common.module_interfaces import TokenLoss
from trainer.models.config import ModelConfig
from trainer.models.pictures import HasClasses
from trainer.objectives.config import LabelSmoothing, ObjectiveConfig, ZLoss, incomplete

if TYPE_CHECKING:
    from data.config import DataConfig


def check_marked(data: DataConfig, kind: str) -> None:
    """Raise ValueError where rows do not say the marks of their tokens."""
    if data.packing != "marked":
        raise ValueError(
            f"data.packing={data.packing}: objective.kind={kind} reads a mark for each token: set "
            "data.packing=marked, and prepare the corpora with --task"
        )


@dataclass
class InstructionConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of the next token, of those alone that the assistant says."""

    objective_class: ClassVar[str] = "trainer.objectives.marked.instruction:Instruction"
    needs: ClassVar[frozenset[str]] = frozenset({"next token"})

    kind: Annotated[Literal["instruction"], "the next token, where the assistant speaks"] = "instruction"
    z_loss: ZLoss = 0.0
    label_smoothing: LabelSmoothing = 0.0

    def token_loss(self) -> TokenLoss:
        return TokenLoss(self.z_loss, self.label_smoothing)

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        check_marked(data, self.kind)


@dataclass
class TagsConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of each word's tag."""

    objective_class: ClassVar[str] = "trainer.objectives.marked.tags:Tags"
    needs: ClassVar[frozenset[str]] = frozenset({"token classes"})

    kind: Annotated[Literal["tags"], "the tag of each word"] = "tags"
    tags: Annotated[
        list[str],
        "names of the tags, by their numbers, such as O, B-PER, I-PER: evaluations then tell precision, "
        "recall and F1 of whole entities; empty: the accuracy of tags alone",
    ] = field(default_factory=list)

    def figures(self, measures: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return `accuracy`, the share of words whose tag has the largest logit; with names of tags also
        `precision`, `recall` and `f1` of entities, micro-averaged, an entity being right where its words and
        its type are (Tjong Kim Sang and De Meulder 2003, cs/0306050).
        """
        right, words = measures["accuracy"]
        found = {"accuracy": right / max(1.0, words)}
        if self.tags:
            (hits, predicted), (_, labelled) = measures["precision"], measures["recall"]
            found["precision"], found["recall"] = hits / max(1.0, predicted), hits / max(1.0, labelled)
            found["f1"] = 2 * hits / max(1.0, predicted + labelled)
        return found

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        check_marked(data, self.kind)
        if not isinstance(model, HasClasses):
            raise incomplete(model, "token classes", "attribute `classes`, their number")
        if self.tags and len(self.tags) != model.classes:
            raise ValueError(
                f"objective.tags names {len(self.tags)} tags, and model.classes={model.classes}: give both "
                "the same number"
            )


@dataclass
class AnswersConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of the places in a context at which the answer begins and ends."""

    objective_class: ClassVar[str] = "trainer.objectives.marked.answers:Answers"
    needs: ClassVar[frozenset[str]] = frozenset({"token classes"})

    of_texts: ClassVar[tuple[str, ...]] = ("exact_match", "f1")

    kind: Annotated[Literal["answers"], "where in a context an answer begins and ends"] = "answers"
    longest: Annotated[
        int, "tokens of the longest answer that an evaluation looks for", "≥ 1", "in tokens"
    ] = 30

    def targets_per_row(self, seq_len: int) -> float:
        return 1

    def figures(self, measures: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return `token_exact_match`, the share of rows whose first and last token are found, and `token_f1`,
        the mean over the rows of the harmonic mean of the shares of tokens that the found and the true answer
        have in common. Those of whole questions and of words come from their texts, `of_texts`.
        """
        return {name: total / max(1.0, rows) for name, (total, rows) in measures.items()}

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        check_marked(data, self.kind)
        if not isinstance(model, HasClasses):
            raise incomplete(model, "token classes", "attribute `classes`, their number")
        if model.classes != 2:
            raise ValueError(
                f"model.classes={model.classes}: objective.kind=answers needs 2 numbers for each token, for "
                "an answer's first and last one: set model.classes=2"
            )
