"""An encoder that tells classes of tokens apart, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from trainer.models.config import Parts
from trainer.models.encoder.pooled_config import ClassesConfig


@dataclass
class TokenClassesConfig(ClassesConfig):
    """An encoder with a linear layer on each token. Its keys are an encoder's without those of the
    vocabulary's head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.token_classes:TokenClasses"
    offers: ClassVar[frozenset[str]] = frozenset({"token classes"})

    kind: Annotated[Literal["token_classes"], "which model"] = "token_classes"  # type: ignore[assignment]
    classes: Annotated[int, "numbers that each token gets: one for each tag; 2 for questions", "≥ 1"] = 2

    def training_flops(self, seq_len: int) -> Parts:
        return replace(super().training_flops(seq_len), last=self.head_flops() * seq_len)
