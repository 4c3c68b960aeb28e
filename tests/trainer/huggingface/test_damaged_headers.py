"""Headers of safetensors files and numbers of config.json that nobody should believe."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from trainer.huggingface.fields import Fields
from trainer.huggingface.folder import header


def _file(path: Path, second: dict[str, Any]) -> Path:
    first = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"one": first, "two": second}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    return path


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    second = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    assert header(_file(tmp_path / "whole", second))["two"].shape == (2,)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    second = {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}
    with pytest.raises(RuntimeError, match="one and two overlap"):
        header(_file(tmp_path / "overlapping", second))


@pytest.mark.parametrize(
    ("shape", "offsets"), [([2.0], [8, 16]), ([2], [8.0, 16.0]), ([-1, -2], [8, 16]), ([6], [-8, 16])]
)
def test_sizes_and_places_are_whole_and_not_negative(
    tmp_path: Path, shape: list[float], offsets: list[float]
) -> None:
    second = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    with pytest.raises(RuntimeError, match="not a safetensors file"):
        header(_file(tmp_path / "odd", second))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused_by_its_key(text: str) -> None:
    fields = Fields(json.loads(f'{{"norm_eps": {text}}}'), "config.json")
    with pytest.raises(ValueError, match=r"norm_eps=.*not a finite number"):
        fields.number("norm_eps")


@pytest.mark.parametrize("text", ["0", "-0.0", "-1e-5"])
def test_a_number_that_is_not_above_0_is_refused_by_its_key(text: str) -> None:
    fields = Fields(json.loads(f'{{"norm_eps": {text}}}'), "config.json")
    with pytest.raises(ValueError, match=r"config.json: norm_eps=.*: not above 0"):
        fields.number("norm_eps")
