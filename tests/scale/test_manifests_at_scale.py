"""A checkpoint's manifest and notes for many ranks, which hold no weights: sizes, counts and shares."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import checkpoint as bench  # the file of that folder


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LAYERS", 2)


def test_a_manifest_grows_with_tensors_and_ranks_and_not_with_their_product(
    tmp_path: Path, few_layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (bench.measure(ranks, tmp_path, listed=False) for ranks in (16, 128))
    listed = bench.measure(16, tmp_path, listed=True)
    # A rank adds its file's entry, its place in the cuts, and its note.
    a_rank = (many["manifest"] - few["manifest"]) / (128 - 16)
    assert a_rank < 120
    assert (many["notes"] - few["notes"]) / (128 - 16) < 600
    assert listed["manifest"] > 10 * few["manifest"]
    assert many["shares"] <= 2
    monkeypatch.setattr(bench, "LAYERS", 4)
    (tmp_path / "more").mkdir()
    more = bench.measure(128, tmp_path / "more", listed=False)
    assert (more["manifest"] - many["manifest"]) / (2 * 9 * 3) < 120, "bytes of a tensor, on 128 ranks"


def test_a_table_of_tensors_is_posted_once(tmp_path: Path, few_layers: None) -> None:
    bench.measure(32, tmp_path, listed=False)
    names = [path.name for path in (tmp_path / "notes-32-False").iterdir()]
    tables = [name for name in names if name.startswith("table-") and not name.endswith(".claim")]
    assert len(tables) == 2, "matrices and vectors are cut in as many dims as they have"
    assert len(names) == 32 + 2 * len(tables)
