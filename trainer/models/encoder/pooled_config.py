"""What encoders with another head than the vocabulary's have in common, as plain data. Imports no torch.

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

HeadLayerKind = Literal["none", "tanh", "gelu"]


@dataclass
class OtherHeadConfig(EncoderConfig):
    """An encoder with a head of its own: at most a linear layer `project`, and a `HeadLayer` before it. Its
    keys are an encoder's without those of the vocabulary's head.
    """

    tie_embeddings: ClassVar[bool] = False  # type: ignore[misc]
    next_sentence: ClassVar[bool] = False  # type: ignore[misc]

    @property
    def head_parameters(self) -> int:
        """Parameters of the head."""
        raise NotImplementedError

    @property
    def has_head_layer(self) -> bool:
        """Whether a layer stands before `project`."""
        return False

    def plan(self) -> ModelPlan:
        encoder = super().plan()
        at_end = ("norm",) if self.norm_place == "pre" else ()
        kept = (rule for rule in encoder.tensor if rule[0].split(".")[0] not in ("head", "next_sentence"))
        return replace(
            encoder,
            towers=(Tower("layers", encoder.first, (*at_end, "head")),),
            tensor=(
                *kept,
                ("head", "alike"),
                ("head.project", "sequence"),
                *((("head.transform.*", "sequence"),) if self.has_head_layer else ()),
            ),
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


@dataclass
class ClassesConfig(OtherHeadConfig):
    """An encoder with a linear layer to classes: of a text, or of each token."""

    classes: Annotated[int, "how many there are; at least the corpus's", "≥ 1"] = 2
    head_layer: Annotated[
        HeadLayerKind,
        "a layer before the classes: none; tanh: BERT's pooler; gelu: with a norm behind it, ModernBERT's",
    ] = "none"

    def check_layout(self, *, tp: int, cp: int) -> None:
        super().check_layout(tp=tp, cp=cp)
        if cp > 1:
            raise ValueError(
                f"parallel.cp={cp}: model.kind={self.kind} needs all tokens of a text together, which cp "
                "would part: give its ranks to the data axes, or to parallel.tp"
            )

    @property
    def has_head_layer(self) -> bool:
        return self.head_layer != "none"

    @property
    def head_parameters(self) -> int:
        layer = self._dense * self.has_head_layer
        if self.head_layer == "gelu":
            layer += self.hidden * (2 if self.norm == "layer" and self.biases else 1)
        return layer + (self.hidden + 1) * self.classes

    def plan(self) -> ModelPlan:
        return replace(super().plan(), task=("head",))

    def head_flops(self) -> int:
        """Floating-point operations of the head, of one place; see `training_flops`."""
        return 6 * self.hidden * (self.classes + self.hidden * self.has_head_layer)
