"""NAME=PATH of the command line."""

from pathlib import Path

import pytest

from trainer.config.evaluating import named


def test_an_equals_sign_may_stand_in_a_path(tmp_path: Path) -> None:
    (folder := tmp_path / "lang=en" / "heldout").mkdir(parents=True)
    url = "s3://bucket/lang=de/heldout.jsonl"
    assert named([str(folder)], "--set") == {"heldout": str(folder)}
    assert named([f"news={folder}"], "--set") == {"news": str(folder)}
    assert named([url, f"german={url}"], "--set") == {"heldout": url, "german": url}
    with pytest.raises(ValueError, match=r"^--set a=/nowhere: /nowhere is not there$"):
        named(["a=/nowhere"], "--set")
