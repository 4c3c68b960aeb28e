"""Crops, flips and colours: functions of the numbers they are drawn from, with the statistics asked for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.config import Augment
from data.pictures.augment import View, centre_view, drawn_view, render, uniforms
from pictures import pixels

ALL = Augment(
    crop_scale=0.2,
    flip=0.3,
    jitter=0.8,
    brightness=0.4,
    contrast=0.3,
    saturation=0.2,
    hue=0.1,
    grayscale=0.25,
)
COUNT = 20_000


def views(cfg: Augment, width: int, height: int, count: int = COUNT) -> list[View]:
    return [drawn_view(cfg, draws, width, height) for draws in uniforms(7, np.arange(count), 1)[:, 0]]


def test_a_number_depends_on_key_sequence_and_view_alone() -> None:
    whole = uniforms(7, np.arange(100), 3)
    np.testing.assert_array_equal(uniforms(7, np.array([42, 7]), 3), whole[[42, 7]])
    np.testing.assert_array_equal(uniforms(7, np.arange(100), 2), whole[:, :2])
    flat = whole.ravel()
    assert len(np.unique(flat)) == flat.size and ((flat >= 0) & (flat < 1)).all()
    assert not (uniforms(8, np.arange(100), 3) == whole).any()
    # Neighbouring sequences, views and places have nothing to do with one another.
    many = uniforms(1, np.arange(20_000), 2)
    for a, b in ((many[1:], many[:-1]), (many[:, 1], many[:, 0]), (many[..., 1:], many[..., :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    assert abs(many.mean() - 0.5) < 0.001


@pytest.mark.parametrize(("width", "height"), [(500, 375), (100, 800)])
def test_crops_are_those_of_an_independent_random_resized_crop(width: int, height: int) -> None:
    """torchvision's algorithm, with NumPy's generator: areas, shapes and places agree within 1 %."""
    rng = np.random.default_rng(0)
    wanted = []
    for _ in range(COUNT):
        for _ in range(10):
            area = width * height * rng.uniform(0.2, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                wanted.append((w, h, rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)))
                break
        else:
            w, h = (width, round(width / 0.75)) if width < height else (round(height / 0.75), height)
            wanted.append((w, h, (width - w) // 2, (height - h) // 2))
    found = [
        (v.box[2] - v.box[0], v.box[3] - v.box[1], v.box[0], v.box[1]) for v in views(ALL, width, height)
    ]
    areas = [np.prod(np.array(boxes)[:, :2], axis=1).mean() for boxes in (found, wanted)]
    assert areas[0] == pytest.approx(areas[1], rel=0.01)
    for a, b, size in zip(np.array(found).T, np.array(wanted).T, (width, height, width, height)):
        assert abs(a.mean() - b.mean()) < 0.01 * size
        assert abs(a.std() - b.std()) < 0.01 * size
        assert a.min() >= 0 and a.max() <= size


def test_areas_of_crops_are_spread_evenly_as_asked() -> None:
    """A square always fits into a square: no crop is tried twice, and areas are even from 0.2 to 1."""
    cfg = Augment(crop_scale=0.2, crop_ratio=1.0)
    boxes = np.array([view.box for view in views(cfg, 1000, 1000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert areas.mean() == pytest.approx(0.6, rel=0.01)
    assert areas.std() == pytest.approx(0.8 / math.sqrt(12), rel=0.01)
    shares = np.histogram(areas, bins=8, range=(0.2, 1.0))[0] / len(areas)
    assert abs(shares * 8 - 1).max() < 0.08


@pytest.mark.slow
def test_shares_are_those_asked_for_within_a_hundredth_of_themselves() -> None:
    many = 120_000
    drawn = views(Augment(flip=0.3, jitter=0.8, hue=0.1, grayscale=0.25), 64, 64, many)
    assert sum(view.mirrored for view in drawn) / many == pytest.approx(0.3, rel=0.01)
    for change, share in (("hue", 0.8), ("grayscale", 0.25)):
        found = sum(any(name == change for name, _ in view.colours) for view in drawn) / many
        assert found == pytest.approx(share, rel=0.01)


def test_shares_and_factors_are_those_asked_for() -> None:
    drawn = views(ALL, 64, 64)
    assert abs(sum(view.mirrored for view in drawn) / COUNT - 0.3) < 0.01
    changes = [dict(view.colours) for view in drawn]
    assert abs(sum("grayscale" in each for each in changes) / COUNT - 0.25) < 0.01
    jittered = [each for each in changes if "hue" in each]
    assert abs(len(jittered) / COUNT - 0.8) < 0.01
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        factors = np.array([each[name] for each in jittered])
        assert low <= factors.min() and factors.max() <= high
        assert abs(factors.mean() - (low + high) / 2) < 0.01 * (high - low)
        assert abs(factors.std() - (high - low) / math.sqrt(12)) < 0.01 * (high - low)
    orders = Counter(tuple(name for name, _ in view.colours if name != "grayscale") for view in drawn)
    del orders[()]
    assert len(orders) == 24
    assert all(abs(count / len(jittered) - 1 / 24) < 0.01 for count in orders.values())


def test_one_setting_does_not_change_what_another_gives() -> None:
    drawn = views(ALL, 80, 60, 500)
    for change in ({"flip": 0.0}, {"hue": 0.0}, {"grayscale": 0.0}, {"jitter": 0.0}):
        assert [v.box for v in views(replace(ALL, **change), 80, 60, 500)] == [v.box for v in drawn]
    assert [v.mirrored for v in views(replace(ALL, crop_scale=1.0), 80, 60, 500)] == [
        v.mirrored for v in drawn
    ]
    plain = views(Augment(), 80, 60, 50)
    assert set(plain) == {centre_view(80, 60)} == {View((10, 0, 70, 60))}
    assert centre_view(1, 1).box == (0, 0, 1, 1)


def test_a_view_shows_its_crop() -> None:
    array = pixels(5, 90, 120)
    picture = Image.fromarray(array)
    box = (20, 10, 84, 74)
    found = render(picture, View(box), (1.0, 1.0), 64)
    np.testing.assert_array_equal(found, array[10:74, 20:84])  # of its own size: no filter
    np.testing.assert_array_equal(render(picture, View(box, True), (1.0, 1.0), 64), found[:, ::-1])
    half = picture.resize((60, 45), Image.Resampling.BOX)
    smaller = render(half, View(box), (0.5, 0.5), 32).astype(int)
    assert abs(smaller - render(picture, View(box), (1.0, 1.0), 32)).mean() < 3
    assert (
        render(Image.new("RGB", (1, 1), (9, 8, 7)), centre_view(1, 1), (1.0, 1.0), 4).reshape(-1, 3).tolist()
        == [[9, 8, 7]] * 16
    )


def test_colours_change_as_their_names_say() -> None:
    array = pixels(2, 32, 32)
    picture = Image.fromarray(array)

    def changed(name: str, factor: float) -> np.ndarray:
        return render(picture, View((0, 0, 32, 32), False, ((name, factor),)), (1.0, 1.0), 32).astype(int)

    assert abs(changed("brightness", 0.5) - array / 2).max() <= 1
    gray = array @ np.array([0.299, 0.587, 0.114])
    assert abs(changed("grayscale", 0.0) - gray[..., None]).max() <= 1
    assert abs(changed("saturation", 0.0) - gray[..., None]).max() <= 1
    assert abs(changed("contrast", 0.0) - gray.mean()).max() <= 1
    assert abs(changed("contrast", 0.5) - (array + gray.mean()) / 2).max() <= 2
    for name in ("brightness", "contrast", "saturation"):
        np.testing.assert_array_equal(changed(name, 1.0), array)
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    turned = render(red, View((0, 0, 2, 2), False, (("hue", 1 / 3),)), (1.0, 1.0), 2)
    assert abs(turned.astype(int) - [0, 255, 0]).max() <= 2
