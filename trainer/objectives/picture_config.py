"""The configs of the objectives on pictures, and of classification. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from trainer.models.config import ModelConfig
from trainer.models.pictures import HasClasses, HasHeads, Pictures, check_pictures, pictures_of
from trainer.objectives.config import ObjectiveConfig, check_room_for_text, incomplete

if TYPE_CHECKING:
    from data.config import DataConfig


@dataclass
class ClassificationConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of a row's class."""

    objective_class: ClassVar[str] = "trainer.objectives.classification:Classification"
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    kind: Annotated[Literal["classification"], "the class of each row"] = "classification"
    label_smoothing: Annotated[
        float,
        "this share of a target's probability is spread evenly over the classes while training",
        "≥ 0",
        "< 1",
    ] = 0.0

    def targets_per_row(self, seq_len: int) -> float:
        return 1

    def figures(self, measures: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return `top_1`, the share of rows whose class has the largest logit, and `f1`: the mean over the
        classes, of those that occur or are predicted, of the harmonic mean of precision and recall (the
        macro-averaged F1 of scikit-learn).
        """
        right, rows = measures["top_1"]
        each = []
        for number in range((len(measures) - 1) // 2):
            (hits, predicted), (_, labelled) = (measures[name] for name in class_measures(number))
            if predicted + labelled:
                each.append(2 * hits / (predicted + labelled))
        return {"top_1": right / max(1.0, rows), "f1": sum(each) / max(1, len(each))}

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        _check_head(model, "classes")
        if not isinstance(model, HasClasses):
            raise incomplete(model, "classes", "attribute `classes`, their number")
        if (pictures := pictures_of(model)) is not None:
            check_pictures(pictures, image_size=data.image_size, image_views=data.image_views, views=1)
        elif data.packing != "one":
            raise ValueError(
                f"data.packing={data.packing}: objective.kind=classification takes a row for one text: set "
                "data.packing=one"
            )
        else:
            check_room_for_text(data.seq_len, self.kind)


def class_measures(number: int) -> tuple[str, str]:
    """Return the names of a class's measures: its rows that are told rightly, of those that are taken for it,
    and of those that have its label.
    """
    return f"precision of class {number}", f"recall of class {number}"


@dataclass
class MaskedImagesConfig(ObjectiveConfig):
    """What is minimised: the difference of hidden patches' pixels from those that are predicted."""

    objective_class: ClassVar[str] = "trainer.objectives.masked_images:MaskedImages"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})

    kind: Annotated[Literal["masked_images"], "the pixels of hidden patches"] = "masked_images"
    mask_ratio: Annotated[float, "the share of a picture that is hidden", "> 0", "< 1"] = 0.6
    mask_patch: Annotated[
        int,
        "side of the squares that are hidden, a multiple of model.patch_size; 0: single patches",
        "≥ 0",
        "in pixels",
    ] = 0
    distance: Annotated[Literal["l1", "l2"], "absolute difference of values (squared near 0), or squared"] = (
        "l1"
    )
    normalise_patches: Annotated[bool, "predict each patch without its own mean and variance, as in MAE"] = (
        False
    )

    def targets_per_row(self, seq_len: int) -> float:
        return 1

    def square(self, pictures: Pictures) -> int:
        """Return the side of the squares that are hidden, in pixels."""
        return self.mask_patch or pictures.patch

    def squares(self, pictures: Pictures) -> int:
        """Return how many squares of a picture are hidden."""
        return round(self.mask_ratio * (pictures.size // self.square(pictures)) ** 2)

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        _check_head(model, "pixels")
        if (pictures := pictures_of(model)) is None or not pictures.patch:
            raise incomplete(model, "pixels", "method `pictures` that gives patches, `Pictures.patch` > 0")
        check_pictures(pictures, image_size=data.image_size, image_views=data.image_views, views=1)
        square = self.square(pictures)
        if square % pictures.patch or pictures.size % square:
            raise ValueError(
                f"objective.mask_patch={square}: must be a multiple of the model's patch of {pictures.patch} "
                f"pixels that divides its pictures of {pictures.size}"
            )
        of, hidden = (pictures.size // square) ** 2, self.squares(pictures)
        if not 0 < hidden < of:
            raise ValueError(
                f"objective.mask_ratio={self.mask_ratio:g}: {hidden} of a picture's {of} squares of {square} "
                "pixels would be hidden: change it, or set a smaller objective.mask_patch"
            )


def _check_head(model: object, needed: str) -> None:
    """Raise ValueError where a model with a choice of heads has another than `needed`."""
    if isinstance(model, HasHeads) and model.head != needed:
        raise ValueError(f"model.head={model.head}: this objective needs model.head={needed}")
