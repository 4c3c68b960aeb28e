"""A small config file, for the tests of this folder."""

from pathlib import Path

import pytest

from small_config import YAML


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(YAML)
    return file
