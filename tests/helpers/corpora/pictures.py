"""Small pictures for tests, each another one, and folders of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """The pixels of a smooth picture, uint8 [height, width, 3]; each number gives another one."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    turns = [x * (1 + (number * 7 + c) % 5) + y * ((number + c) % 4) + 0.618 * number for c in range(3)]
    waves = [np.sin(2 * np.pi * turn) for turn in turns]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def encoded(array: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    """The file of some pixels."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


def write_folders(folder: Path, classes: Sequence[str], count: int) -> dict[str, bytes]:
    """`count` pictures in a folder for each class, JPEG and PNG in turn: path below `folder` → bytes."""
    written = {}
    for number in range(len(classes) * count):
        form = ("JPEG", "PNG")[number % 2]
        name = f"{classes[number // count]}/{number:04d}.{form.lower()[:3].replace('jpe', 'jpg')}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written[name] = encoded(pixels(number), form)
        (folder / name).write_bytes(written[name])
    return written
