"""An encoder that tells classes of texts apart, as plain data, and what follows from it. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from common.model_plan import ModelPlan, Tower
from trainer.models.config import Parts
from trainer.models.encoder.config import EncoderConfig
from trainer.models.pairs import TextPool


@dataclass
class TextClassesConfig(EncoderConfig):
    """An encoder with a linear layer on its pooled hidden states. Its keys are an encoder's without the
    vocabulary's head.

    The methods are those of `trainer.models.config.ModelConfig`, which documents them.
    """

    model_class: ClassVar[str] = "trainer.models.encoder.text_classes:TextClasses"
    offers: ClassVar[frozenset[str]] = frozenset({"classes"})
    tie_embeddings: ClassVar[bool] = False  # type: ignore[misc]
    next_sentence: ClassVar[bool] = False  # type: ignore[misc]

    kind: Annotated[Literal["text_classes"], "which model this is"] = "text_classes"  # type: ignore[assignment]
    classes: Annotated[int, "how many there are; at least the corpus's", "≥ 1"] = 2
    pool: Annotated[
        TextPool, "what the logits are made of: the mean of a text's hidden states, the first or the last"
    ] = "mean"

    def check_layout(self, *, tp: int, cp: int) -> None:
        super().check_layout(tp=tp, cp=cp)
        if cp > 1:
            raise ValueError(
                f"parallel.cp={cp}: model.kind=text_classes pools all tokens of a text, which cp would part: "
                "give its ranks to the data axes, or to parallel.tp"
            )

    def plan(self) -> ModelPlan:
        encoder = super().plan()
        at_end = ("norm",) if self.norm_place == "pre" else ()
        kept = (rule for rule in encoder.tensor if rule[0].split(".")[0] not in ("head", "next_sentence"))
        return replace(
            encoder,
            towers=(Tower("layers", encoder.first, (*at_end, "head")),),
            tensor=(*kept, ("head", "alike"), ("head.project", "sequence")),
            task=("head",),
        )

    def parameters(self) -> Parts:
        whole = super().parameters()
        norm = self.hidden * (2 if self.norm == "layer" and self.biases else 1)
        head = (self.hidden + 1) * self.classes
        return replace(whole, last=head + norm * (self.norm_place == "pre"))

    def training_flops(self, seq_len: int) -> Parts:
        return replace(super().training_flops(seq_len), last=6 * self.hidden * self.classes)
