"""Which crop, flip and colours each view of a picture has: hashes of (seed, sequence number, view).

    uniforms(key, numbers, views)     the random numbers of some pictures
    drawn_view(cfg, draws, w, h)      one view of a picture of this size, from its numbers
    centre_view(w, h)                 the view without chance: the largest square in the middle
    render(picture, view, …)          a view's pixels

Nothing depends on the process, the thread, or on what else is in the batch. The crop is torchvision's
RandomResizedCrop (Szegedy et al. 2014, arXiv:1409.4842, section 6), the colours its ColorJitter: each change
times a factor, in an order drawn for each view. Each kind of draw has places of its own among the numbers, so
that one setting does not change what another gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.config import Augment

if TYPE_CHECKING:
    from PIL.Image import Image

_CROPS = 10  # crops that are tried before the centre is taken
_AREAS, _RATIOS = range(_CROPS), range(_CROPS, 2 * _CROPS)
_X, _Y, _FLIP, _JITTER, _GRAYSCALE = range(2 * _CROPS, 2 * _CROPS + 5)
_FACTORS = range(_GRAYSCALE + 1, _GRAYSCALE + 5)
_ORDER = range(_FACTORS.stop, _FACTORS.stop + 4)
DRAWS = _ORDER.stop
_GAMMA = 0x9E3779B97F4A7C15

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels."""


@dataclass(frozen=True)
class View:
    """One view of a picture.

    box: the part of the upright picture that is shown.
    mirrored: left to right?
    colours: (change, factor) in the order in which they happen; a change is a key of CHANGES.
    """

    box: Box
    mirrored: bool = False
    colours: tuple[tuple[str, float], ...] = ()


def uniforms(key: int, numbers: np.ndarray, views: int) -> np.ndarray:
    """Random numbers in [0, 1), multiples of 2^-53, float64 [rows, views, DRAWS].

    key: of the run.
    numbers: the rows' sequence numbers, int64 [rows].
    """
    rows = _mixed(numbers.astype(np.uint64) * np.uint64(_GAMMA) + np.uint64(key))
    shown = _mixed(rows[:, None] + np.arange(1, views + 1, dtype=np.uint64) * np.uint64(_GAMMA))
    places = np.arange(1, DRAWS + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return (_mixed(shown[..., None] + places) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def drawn_view(cfg: Augment, draws: np.ndarray, width: int, height: int) -> View:
    """The view of an upright picture that its random numbers, float64 [DRAWS], give."""
    box = _crop(cfg, draws, width, height) if cfg.crop_scale < 1 else centre_view(width, height).box
    return View(box, bool(draws[_FLIP] < cfg.flip), _colours(cfg, draws))


def centre_view(width: int, height: int) -> View:
    """The largest square in the middle of a picture."""
    return View(_centred(width, height, min(width, height), min(width, height)))


def _centred(width: int, height: int, wide: int, high: int) -> Box:
    left, upper = (width - wide) // 2, (height - high) // 2
    return (left, upper, left + wide, upper + high)


def _crop(cfg: Augment, draws: np.ndarray, width: int, height: int) -> Box:
    area = width * height
    most = -math.log(cfg.crop_ratio)
    for first, second in zip(_AREAS, _RATIOS):
        share = cfg.crop_scale + (1 - cfg.crop_scale) * draws[first]
        ratio = math.exp(most * (2 * draws[second] - 1))
        wide, high = round(math.sqrt(area * share * ratio)), round(math.sqrt(area * share / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(draws[_X] * (width - wide + 1))
            upper = int(draws[_Y] * (height - high + 1))
            return (left, upper, left + wide, upper + high)
    # A long picture: its middle, as near to its own shape as `crop_ratio` allows.
    if width / height < cfg.crop_ratio:
        return _centred(width, height, width, round(width / cfg.crop_ratio))
    if width / height > 1 / cfg.crop_ratio:
        return _centred(width, height, round(height / cfg.crop_ratio), height)
    return (0, 0, width, height)


def _colours(cfg: Augment, draws: np.ndarray) -> tuple[tuple[str, float], ...]:
    changes: list[tuple[str, float]] = []
    if draws[_JITTER] < cfg.jitter:
        most = {name: getattr(cfg, name) for name in ("brightness", "contrast", "saturation", "hue")}
        drawn = {}
        for (name, strength), place in zip(most.items(), _FACTORS):
            if strength:
                low = -strength if name == "hue" else max(0.0, 1 - strength)
                high = strength if name == "hue" else 1 + strength
                drawn[name] = low + (high - low) * float(draws[place])
        order = np.argsort(draws[list(_ORDER)], kind="stable").tolist()
        names = list(most)
        changes += [(names[i], drawn[names[i]]) for i in order if names[i] in drawn]
    if draws[_GRAYSCALE] < cfg.grayscale:
        changes.append(("grayscale", 0.0))
    return tuple(changes)


def render(picture: Image, view: View, scale: tuple[float, float], size: int) -> np.ndarray:
    """The pixels of a view, uint8 [size, size, 3].

    picture: upright, RGB.
    scale: its size over that of the picture that the view was drawn for: less than 1 where it was decoded
        smaller.
    size: of the view, in pixels; scaled by the bicubic filter, which takes in all pixels of the crop.
    """
    from PIL.Image import Resampling, Transpose

    x, y = scale
    left, upper, right, lower = view.box
    box = (left * x, upper * y, min(right * x, picture.width), min(lower * y, picture.height))
    shown = picture.resize((size, size), Resampling.BICUBIC, box)
    if view.mirrored:
        shown = shown.transpose(Transpose.FLIP_LEFT_RIGHT)
    for change, factor in view.colours:
        shown = CHANGES[change](shown, factor)
    return np.asarray(shown)


def _hue(picture: Image, turn: float) -> Image:
    from PIL.Image import fromarray

    bands = np.array(picture.convert("HSV"))
    bands[..., 0] += np.uint8(round(turn * 255) % 256)
    return fromarray(bands, "HSV").convert("RGB")


def _brightness(picture: Image, factor: float) -> Image:
    from PIL.ImageEnhance import Brightness

    return Brightness(picture).enhance(factor)


def _contrast(picture: Image, factor: float) -> Image:
    from PIL.ImageEnhance import Contrast

    return Contrast(picture).enhance(factor)


def _saturation(picture: Image, factor: float) -> Image:
    from PIL.ImageEnhance import Color

    return Color(picture).enhance(factor)


def _grayscale(picture: Image, _: float) -> Image:
    return picture.convert("L").convert("RGB")


CHANGES: dict[str, Callable[[Image, float], Image]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
}
