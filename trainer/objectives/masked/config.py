"""The config of masked language modelling. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, runtime_checkable

from common.module_interfaces import TokenLoss
from trainer.objectives.config import LabelSmoothing, ObjectiveConfig, ZLoss

if TYPE_CHECKING:
    from data.config import DataConfig
    from trainer.models.config import ModelConfig

SHORTEST_PAIR = 5
"""Tokens of a row of two sentences: one of each, and three that mark them."""


@runtime_checkable
class MayHaveNextSentenceHead(Protocol):
    """The config of a model that may have a head for the next sentence, and says whether it has."""

    next_sentence: bool


@dataclass
class MaskedLMConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of hidden tokens, and with `next_sentence` that of whether a row's
    second sentence follows its first (Devlin et al. 2018, arXiv:1810.04805).
    """

    objective_class: ClassVar[str] = "trainer.objectives.masked.masked_lm:MaskedLM"
    needs: ClassVar[frozenset[str]] = frozenset({"masked tokens"})

    kind: Annotated[Literal["masked_lm"], "which objective; masked_lm: hidden tokens"] = "masked_lm"
    mask_rate: Annotated[float, "share of a row's tokens that are predicted", "> 0", "≤ 1"] = 0.15
    mask_share: Annotated[float, "share of these that are replaced by the mask", "≥ 0", "≤ 1"] = 0.8
    random_share: Annotated[
        float,
        "share of these that are replaced by a random token; the rest stay as they are",
        "≥ 0",
        "≤ 1",
    ] = 0.1
    whole_words: Annotated[bool, "the tokens of a word are predicted together, or not at all"] = False
    next_sentence: Annotated[
        bool,
        "cut each document in two, replace the second part by a part of another document in half of the rows "
        "and predict in which; needs model.next_sentence, data.packing=one and data.partners",
    ] = False
    z_loss: ZLoss = 0.0
    label_smoothing: LabelSmoothing = 0.0

    def targets_per_row(self, seq_len: int) -> float:
        return self.mask_rate * seq_len

    def positions_of_head(self, seq_len: int) -> float:
        return self.mask_rate * seq_len

    def extra_ids(self, seq_len: int) -> tuple[tuple[str, ...], ...]:
        mask = ("[MASK]", "<mask>")
        return (mask, ("[CLS]", "<cls>", "<s>")) if self.next_sentence else (mask,)

    def token_loss(self) -> TokenLoss:
        return TokenLoss(self.z_loss, self.label_smoothing)

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"objective.mask_share={self.mask_share:g} + objective.random_share={self.random_share:g} is "
                "more than 1: lower one"
            )
        has_head = isinstance(model, MayHaveNextSentenceHead) and model.next_sentence
        if has_head and not self.next_sentence:
            raise ValueError(
                "model.next_sentence=true: nothing would train that head: set objective.next_sentence=true "
                "too, or model.next_sentence=false"
            )
        if not self.next_sentence:
            return
        if not has_head:
            raise ValueError(
                "objective.next_sentence=true needs a model with a head for it: set model.next_sentence=true"
            )
        if data.packing != "one" or not data.partners:
            raise ValueError(
                f"objective.next_sentence=true with data.packing={data.packing}, "
                f"data.partners={str(data.partners).lower()}: its rows are made of a document and another "
                "one: set data.packing=one and data.partners=true"
            )
        if data.seq_len < SHORTEST_PAIR:
            raise ValueError(
                f"data.seq_len={data.seq_len}: objective.next_sentence=true needs at least {SHORTEST_PAIR}"
            )
