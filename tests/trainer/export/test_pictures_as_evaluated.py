"""An exported preprocessor_config.json against the pictures that an evaluation shows its model."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.pictures.augment import centre_view, render
from data.pictures.decode import OpenedPicture
from trainer.huggingface.families.pictures import preprocessor

SIZE = 24
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def picture(mode: str, width: int, height: int) -> Image.Image:
    """Smooth colours, so that a pixel more or less of a crop changes little, and half of it transparent."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    bands = [x, y, 1 - x * y, np.where(x < 0.5, 0, 1)]
    return Image.fromarray(np.uint8(255 * np.stack(bands, axis=-1)), "RGBA").convert(mode)


@pytest.mark.parametrize(("mode", "width", "height"), [
    ("RGB", 60, 60), ("RGB", 96, 40), ("RGB", 40, 70), ("RGB", 12, 20), ("L", 60, 60), ("RGBA", 60, 60),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["ViTImageProcessor", "CLIPImageProcessor", "SiglipImageProcessor"])
def test_a_processor_gives_the_pixels_of_an_evaluation(
    tmp_path: Path, kind: str, mode: str, width: int, height: int
) -> None:
    from transformers import AutoImageProcessor

    shown = picture(mode, width, height)
    content = preprocessor(kind, SIZE, MEAN, STD)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(shown.copy(), return_tensors="np")["pixel_values"]
    file = io.BytesIO()
    shown.save(file, "PNG")
    ours = render(OpenedPicture(file.getvalue()).load(), centre_view(width, height), (1.0, 1.0), SIZE)
    assert theirs.shape == (1, 3, SIZE, SIZE)
    pixels = (theirs[0].transpose(1, 2, 0) * STD + MEAN) * 255
    # A picture that is no square they scale as a whole, then cut: by less than a pixel elsewhere.
    assert np.abs(pixels - ours).max() < (1.5 if width == height else 12)
