"""The keys of span corruption and of fill-in-the-middle, and what follows from them. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from common.module_interfaces import TokenLoss
from trainer.objectives.config import LabelSmoothing, ObjectiveConfig, ZLoss

if TYPE_CHECKING:
    from data.config import DataConfig
    from trainer.models.config import ModelConfig

_MULTIPLE = 8
"""A row of span corruption is padded to a multiple of this, so that tp and cp divide it."""


@dataclass
class SpanCorruptionConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of the spans that were taken out of a text, which is seen in both
    directions (Raffel et al. 2020, T5, arXiv:1910.10683), by a decoder with a prefix (the same, section 3.2).
    """

    objective_class: ClassVar[str] = "trainer.objectives.spans.span_corruption:SpanCorruption"
    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})

    kind: Annotated[Literal["span_corruption"], "which objective this is"] = "span_corruption"
    density: Annotated[float, "the share of a row's tokens that is taken out, on average", "> 0", "< 1"] = (
        0.15
    )
    mean_span: Annotated[float, "the mean length of a span", "≥ 1", "in tokens"] = 3.0
    z_loss: ZLoss = 0.0
    label_smoothing: LabelSmoothing = 0.0

    def most_spans(self, seq_len: int) -> int:
        """Return the largest number of spans that a row of `seq_len` tokens may have."""
        kept = max(1, seq_len - math.floor(seq_len * self.density))
        return min(max(1, math.ceil(self._most_noise(seq_len) / self.mean_span)), kept)

    def most_targets(self, seq_len: int) -> int:
        """Return the largest number of targets of a row: spans, their sentinels, and the separator."""
        return self._most_noise(seq_len) + self.most_spans(seq_len) + 1

    def _most_noise(self, seq_len: int) -> int:
        return min(max(1, math.ceil(seq_len * self.density)), seq_len - 1)

    def targets_per_row(self, seq_len: int) -> float:
        return seq_len * self.density * (1 + 1 / self.mean_span) + 1

    def row_length(self, seq_len: int) -> int:
        """Return the text's tokens, each span's two sentinels, and padding to a multiple of 8."""
        return -(-(seq_len + 2 * self.most_spans(seq_len)) // _MULTIPLE) * _MULTIPLE

    def positions_of_head(self, seq_len: int) -> float:
        return self.most_targets(seq_len)

    def extra_ids(self, seq_len: int) -> tuple[tuple[str, ...], ...]:
        return tuple((f"<extra_id_{number}>",) for number in range(self.most_spans(seq_len)))

    def token_loss(self) -> TokenLoss:
        return TokenLoss(self.z_loss, self.label_smoothing)

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        if data.seq_len < 2:
            raise ValueError(f"data.seq_len={data.seq_len}: objective.kind={self.kind} needs at least 2")
        if data.packing in ("views", "pair"):
            raise ValueError(
                f"data.packing={data.packing}: objective.kind={self.kind} takes a row for one text: set it "
                "to cut, best_fit or one"
            )
        if data.document_mask and data.packing != "one":
            raise ValueError(
                f"data.document_mask=true: objective.kind={self.kind} takes a row for one text: "
                "set it to false, or data.packing=one"
            )


@dataclass
class FillInTheMiddleConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of the next token, where some documents have their middle moved
    behind their end (Bavarian et al. 2022, arXiv:2207.14255).
    """

    objective_class: ClassVar[str] = "trainer.objectives.spans.fill_in_the_middle:FillInTheMiddle"
    needs: ClassVar[frozenset[str]] = frozenset({"next token"})

    kind: Annotated[Literal["fill_in_the_middle"], "which objective this is"] = "fill_in_the_middle"
    rate: Annotated[float, "the share of documents whose middle is moved", "≥ 0", "≤ 1"] = 0.5
    suffix_first: Annotated[
        float, "the share of these in the order suffix, prefix, middle; the others: prefix, suffix, middle",
        "≥ 0", "≤ 1",
    ] = 0.5  # fmt: skip
    z_loss: ZLoss = 0.0
    label_smoothing: LabelSmoothing = 0.0

    def extra_ids(self, seq_len: int) -> tuple[tuple[str, ...], ...]:
        """Return the marks of prefix, suffix and middle, as code models call them."""
        return tuple(
            (f"<|fim_{part}|>", f"<fim_{part}>", f"<fim-{part}>", short)
            for part, short in (("prefix", "<PRE>"), ("suffix", "<SUF>"), ("middle", "<MID>"))
        )

    def token_loss(self) -> TokenLoss:
        return TokenLoss(self.z_loss, self.label_smoothing)
