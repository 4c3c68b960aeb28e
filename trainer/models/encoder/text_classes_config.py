"""An encoder that tells classes of texts apart, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from trainer.models.config import Parts
from trainer.models.encoder.pooled_config import ClassesConfig, PooledEncoderConfig


@dataclass
class TextClassesConfig(ClassesConfig, PooledEncoderConfig):
    """An encoder with a linear layer on what it pools of a text. Its keys are an encoder's without those of
    the vocabulary's head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.text_classes:TextClasses"
    offers: ClassVar[frozenset[str]] = frozenset({"classes"})

    kind: Annotated[Literal["text_classes"], "which model this is"] = "text_classes"  # type: ignore[assignment]

    def training_flops(self, seq_len: int) -> Parts:
        return replace(super().training_flops(seq_len), last=self.head_flops())
