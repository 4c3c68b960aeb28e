"""What encoders with another head than the vocabulary's have in common, as plain data. Imports no torch.

The strings in a field's `Annotated` are its key's meaning, limits and unit; `trainer.config.keys` parses and
checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from common.model_plan import ModelPlan, Tower
from trainer.models.config import Parts
from trainer.models.encoder.config import EncoderConfig
from trainer.models.pairs import TextPool


@dataclass
class OtherHeadConfig(EncoderConfig):
    """An encoder with a head of its own, of a linear layer `project` at most. Its keys are an encoder's
    without those of the vocabulary's head.
    """

    tie_embeddings: ClassVar[bool] = False  # type: ignore[misc]
    next_sentence: ClassVar[bool] = False  # type: ignore[misc]

    @property
    def head_parameters(self) -> int:
        """Parameters of the head."""
        raise NotImplementedError

    def plan(self) -> ModelPlan:
        encoder = super().plan()
        at_end = ("norm",) if self.norm_place == "pre" else ()
        kept = (rule for rule in encoder.tensor if rule[0].split(".")[0] not in ("head", "next_sentence"))
        return replace(
            encoder,
            towers=(Tower("layers", encoder.first, (*at_end, "head")),),
            tensor=(*kept, ("head", "alike"), ("head.project", "sequence")),
        )

    def parameters(self) -> Parts:
        norm = self.hidden * (2 if self.norm == "layer" and self.biases else 1)
        return replace(super().parameters(), last=self.head_parameters + norm * (self.norm_place == "pre"))


@dataclass
class PooledEncoderConfig(OtherHeadConfig):
    """An encoder with a `trainer.models.towers.head.TextHead`."""

    pool: Annotated[TextPool, "what a text becomes: the mean of its hidden states, the first or the last"] = (
        "mean"
    )
