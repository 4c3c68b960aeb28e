"""What is found out about a job's corpora before any rank starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.checks import check_job
from launch.job import Job
from made_corpus import make_corpus, numbered_documents

MODEL = {"kind": "text_classes", "layers": 1, "hidden": 16, "heads": 2, "vocab": 50_000, "classes": 2}


def check(folder: Path, sources: list[str], heldout: list[str]) -> None:
    config: dict[str, Any] = {
        "model": MODEL,
        "objective": {"kind": "classification"},
        "data": {
            "sources": [{"path": str(folder / name)} for name in sources],
            "heldout": [{"path": str(folder / name)} for name in heldout],
            "packing": "one",
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    check_job(Job(str(folder / "run.yaml"), (), 1))


def test_classes_are_those_of_any_source_and_of_each_held_out_set(tmp_path: Path) -> None:
    make_corpus(tmp_path / "two", numbered_documents([5] * 4), classes=["a", "b", "a", "b"])
    make_corpus(tmp_path / "three", numbered_documents([5] * 4), classes=["a", "b", "c", "b"])
    make_corpus(tmp_path / "none", numbered_documents([5] * 4))
    check(tmp_path, ["none", "two"], ["two"])
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]\.path='.*none': .* the corpus has no classes"):
        check(tmp_path, ["none"], [])
    with pytest.raises(ValueError, match=r"^data\.heldout\[0\]\.path='.*none': .* the corpus has no classes"):
        check(tmp_path, ["two"], ["none"])
    with pytest.raises(
        ValueError, match=r"^data\.sources\[1\]\.path='.*three': model\.classes=2: the corpus"
    ):
        check(tmp_path, ["two", "three"], [])
