"""An encoder that tells classes of texts apart, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models.config import Parts
from trainer.models.encoder.pooled_config import PooledEncoderConfig


@dataclass
class TextClassesConfig(PooledEncoderConfig):
    """An encoder with a linear layer on what it pools of a text. Its keys are an encoder's without those of
    the vocabulary's head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.text_classes:TextClasses"
    offers: ClassVar[frozenset[str]] = frozenset({"classes"})

    kind: Annotated[Literal["text_classes"], "which model this is"] = "text_classes"  # type: ignore[assignment]
    classes: Annotated[int, "how many there are; at least the corpus's", "≥ 1"] = 2

    def check_layout(self, *, tp: int, cp: int) -> None:
        super().check_layout(tp=tp, cp=cp)
        if cp > 1:
            raise ValueError(
                f"parallel.cp={cp}: model.kind=text_classes pools all tokens of a text, which cp would part: "
                "give its ranks to the data axes, or to parallel.tp"
            )

    @property
    def head_parameters(self) -> int:
        return (self.hidden + 1) * self.classes

    def plan(self) -> ModelPlan:
        return replace(super().plan(), task=("head",))

    def training_flops(self, seq_len: int) -> Parts:
        return replace(super().training_flops(seq_len), last=6 * self.hidden * self.classes)
