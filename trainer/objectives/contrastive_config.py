"""The configs of the objectives that compare rows. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from trainer.models.pairs import EmbedsPairs
from trainer.models.pictures import HasHeads, check_pictures, pictures_of
from trainer.objectives.config import ObjectiveConfig, check_room_for_text, incomplete

if TYPE_CHECKING:
    from data.config import DataConfig
    from trainer.models.config import ModelConfig

Negatives = Literal["other_side", "both_sides"]


class ComparingConfig(ObjectiveConfig):
    """What the configs of all objectives that compare rows have in common.

    learnt: what a model must learn of the scores besides; see `EmbedsPairs`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    learnt: ClassVar[str]

    def targets_per_row(self, seq_len: int) -> float:
        return 1

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        self._check_learnt(model)
        if isinstance(model, HasHeads) and model.head != "embedding":
            raise ValueError(
                f"model.head={model.head}: objective.kind={self.kind} needs model.head=embedding"
            )
        if (pictures := pictures_of(model)) is not None:
            # A picture and its caption, or two views of a picture.
            views = 1 if model.vocab else 2
            check_pictures(pictures, image_size=data.image_size, image_views=data.image_views, views=views)
            if model.vocab:
                check_room_for_text(data.seq_len, self.kind)
        elif not isinstance(model, EmbedsPairs):
            raise incomplete(model, "embedding", "method `pictures`, nor attributes `learnt` and `pool`")
        elif data.packing not in ("views", "pair"):
            raise ValueError(
                f"data.packing={data.packing}: objective.kind={self.kind} compares the two halves of a row: "
                "set data.packing to views (two crops of a document) or pair (its two texts)"
            )

    def _check_learnt(self, model: ModelConfig) -> None:
        """Raise ValueError where the model does not learn what the objective has learnt beside embeddings."""
        if isinstance(model, EmbedsPairs):
            if model.learnt != self.learnt:
                raise ValueError(
                    f"objective.kind={self.kind}: needs model.learnt={self.learnt}, and this model has "
                    f"model.learnt={model.learnt}: set that, or choose another objective"
                )
        elif self.learnt != "none":
            raise ValueError(
                f"objective.kind={self.kind}: needs a model with model.learnt={self.learnt}, and "
                f"model.kind={model.kind} learns no scale: choose text_pair or image_text, or "
                "objective.kind=contrastive"
            )


@dataclass
class ContrastiveConfig(ComparingConfig):
    """What is minimised: the cross-entropy of a row's other side among the sides of all rows of the global
    batch (InfoNCE: van den Oord et al. 2018, arXiv:1807.03748).

    With `both_sides` this is SimCLR's NT-Xent (Chen et al. 2020, arXiv:2002.05709): the other rows' same side
    is among the negatives too.
    """

    objective_class: ClassVar[str] = "trainer.objectives.contrastive:Contrastive"
    learnt: ClassVar[str] = "none"
    least_rows: ClassVar[int] = 2

    kind: Annotated[Literal["contrastive"], "the other side of a row among all rows of the global batch"] = (
        "contrastive"
    )
    temperature: Annotated[float, "what cosines are divided by", "> 0", "≥ 1e-20", "≤ 3.4e38"] = 0.05
    negatives: Annotated[Negatives, "the other rows' other sides, or all of their sides, as in SimCLR"] = (
        "other_side"
    )

    def targets_per_row(self, seq_len: int) -> float:
        return 2


@dataclass
class ClipConfig(ComparingConfig):
    """What is minimised: CLIP's softmax over the rows of the global batch, in both directions, with a learnt
    scale (Radford et al. 2021, arXiv:2103.00020, figure 3).
    """

    objective_class: ClassVar[str] = "trainer.objectives.contrastive:Clip"
    learnt: ClassVar[str] = "scale"
    least_rows: ClassVar[int] = 2

    kind: Annotated[Literal["clip"], "CLIP's: contrastive with a learnt temperature"] = "clip"
    largest_scale: Annotated[
        float, "the learnt scale stays at or below this, as published", "> 0", "≥ 1.2e-38", "≤ 1e20"
    ] = 100.0


@dataclass
class SiglipConfig(ComparingConfig):
    """What is minimised: the binary cross-entropy of every pair of sides of the global batch: is it a row's
    own? With a learnt scale and bias (Zhai et al. 2023, arXiv:2303.15343).
    """

    objective_class: ClassVar[str] = "trainer.objectives.contrastive:Siglip"
    learnt: ClassVar[str] = "scale_bias"

    kind: Annotated[Literal["siglip"], "SigLIP's: each pair of sides by itself, with a sigmoid"] = "siglip"
