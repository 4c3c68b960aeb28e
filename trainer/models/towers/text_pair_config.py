"""An encoder of pairs of texts, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models.config import Parts
from trainer.models.encoder.pooled_config import PooledEncoderConfig
from trainer.models.pairs import LEARNT_COLUMNS
from trainer.models.towers.learnt import (
    PUBLISHED_BIAS,
    FirstBias,
    FirstScale,
    LearntNumbers,
    learnt_init,
)


@dataclass
class TextPairConfig(PooledEncoderConfig):
    """An encoder that embeds both texts of a row, each in a half of it: a bi-encoder with shared weights
    (Reimers and Gurevych 2019, arXiv:1908.10084). Its keys are an encoder's without those of the vocabulary's
    head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.towers.text_pair:TextPair"
    offers: ClassVar[frozenset[str]] = frozenset({"embedding"})

    kind: Annotated[Literal["text_pair"], "which model this is"] = "text_pair"  # type: ignore[assignment]
    embedding: Annotated[int, "width of an embedding; 0: the pooled hidden state itself", "≥ 0"] = 0
    learnt: LearntNumbers = "none"
    first_scale: FirstScale = 0.0
    first_bias: FirstBias = PUBLISHED_BIAS

    def check_seq_len(self, seq_len: int) -> None:
        if self.positions == "learned" and seq_len // 2 > self.max_positions:
            raise ValueError(
                f"data.seq_len={seq_len} makes texts of {seq_len // 2} tokens, more than "
                f"model.max_positions={self.max_positions}: raise that, or lower data.seq_len"
            )

    def plan(self) -> ModelPlan:
        encoder = super().plan()
        return replace(
            encoder,
            init=lambda name, shape: (
                learnt_init(name, self.learnt, self.first_scale, self.first_bias) or encoder.init(name, shape)
            ),
        )

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.embedding + LEARNT_COLUMNS[self.learnt]

    def training_flops(self, seq_len: int) -> Parts:
        """Of both texts, each of half of a row: attention is inside a text. The forward of the first pass is
        computed again in the second, so it is not counted.
        """
        one = super().training_flops(seq_len // 2)
        return replace(one, block=2 * one.block, last=2 * 6 * self.hidden * self.embedding)
