"""An encoder that tells classes of tokens apart, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan
from trainer.models.config import Parts
from trainer.models.encoder.pooled_config import OtherHeadConfig


@dataclass
class TokenClassesConfig(OtherHeadConfig):
    """An encoder with a linear layer on each token. Its keys are an encoder's without those of the
    vocabulary's head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.token_classes:TokenClasses"
    offers: ClassVar[frozenset[str]] = frozenset({"token classes"})

    kind: Annotated[Literal["token_classes"], "which model"] = "token_classes"  # type: ignore[assignment]
    classes: Annotated[int, "numbers that each token gets: one for each tag; 2 for questions", "≥ 1"] = 2

    def check_layout(self, *, tp: int, cp: int) -> None:
        super().check_layout(tp=tp, cp=cp)
        if cp > 1:
            raise ValueError(
                f"parallel.cp={cp}: model.kind=token_classes gives the numbers of all tokens of a text "
                "together, which cp would part: give its ranks to the data axes, or to parallel.tp"
            )

    @property
    def head_parameters(self) -> int:
        return (self.hidden + 1) * self.classes

    def plan(self) -> ModelPlan:
        return replace(super().plan(), task=("head",))

    def training_flops(self, seq_len: int) -> Parts:
        return replace(super().training_flops(seq_len), last=6 * self.hidden * self.classes * seq_len)
