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
from trainer.models.pairs import LEARNT_COLUMNS, Learnt
from trainer.models.towers.learnt import PUBLISHED_BIAS, learnt_init


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
    learnt: Annotated[
        Learnt,
        "what is learnt of the scores besides: their scale, as in CLIP, or scale and bias, as in SigLIP",
    ] = "none"
    first_scale: Annotated[
        float,
        "the learnt scale's first value, the inverse of a temperature; 0: as published, 1 / 0.07 with a "
        "scale alone, 10 with a bias",
        "≥ 0",
        "≤ 3.4e38",
    ] = 0.0
    first_bias: Annotated[
        float,
        "the learnt bias's first value; the default is SigLIP's, for batches of 32,768 rows: about "
        "-ln(train.global_batch)",
        "≥ -3.4e38",
        "≤ 3.4e38",
    ] = PUBLISHED_BIAS

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
