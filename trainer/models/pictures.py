"""How a model takes pictures and what it makes of them, as the objectives see it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Pictures:
    """How a model wants its pictures.

    size: height and width, in pixels.
    mean, std: of each channel, of pixel values from 0 to 1; a pixel becomes (value - mean) / std.
    patch: height and width of a patch, in pixels: the model's input is [rows, views · positions, 3 · patch²],
        each view `prefix` positions of zeros and then its patches, row by row. A patch's values are ordered
        by channel, then row, then column, as a convolution's weights are. 0: the input is whole pictures
        [rows, views, height, width, 3].
    prefix: positions before the patches that belong to tokens of the model's own, such as a class token.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    patch: int = 0
    prefix: int = 0

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.size // self.patch) ** 2

    @property
    def positions(self) -> int:
        """Positions of a picture in the model's input, the prefix included."""
        return self.prefix + self.patches


@runtime_checkable
class TakesPictures(Protocol):
    """The config of a model whose input is pictures."""

    def pictures(self) -> Pictures:
        """Return how it wants them."""
        ...


def pictures_of(model: object) -> Pictures | None:
    """Return how the model of a config wants its pictures; None where it takes none."""
    return model.pictures() if isinstance(model, TakesPictures) else None


@runtime_checkable
class HasHeads(Protocol):
    """The config of a model that has one of several heads: its `offers` are all of them."""

    @property
    def head(self) -> str: ...


@runtime_checkable
class HasClasses(Protocol):
    """The config of a model that offers "classes"."""

    @property
    def classes(self) -> int:
        """How many: the model's output is a logit for each, float [rows, classes]."""
        ...


def check_pictures(pictures: Pictures, *, image_size: int, image_views: int, views: int) -> None:
    """Raise ValueError, naming the key, where `data.image_size` and `data.image_views` are not what a model
    and an objective take.

    views: of each picture, as the objective takes them.
    """
    if image_size != pictures.size:
        raise ValueError(
            f"data.image_size={image_size}: the model's pictures have {pictures.size} pixels a side: set "
            f"data.image_size={pictures.size}"
        )
    if image_views != views:
        raise ValueError(
            f"data.image_views={image_views}: the objective takes {views} of each picture: set "
            f"data.image_views={views}"
        )
