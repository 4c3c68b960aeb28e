"""A checkpoint's manifest and notes for many ranks, which hold no weights: sizes, counts and shares."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import checkpoint as bench  # the file of that folder


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LAYERS", 2)


@pytest.mark.parametrize("kind", ["rows", "flat"])
def test_a_manifest_grows_with_tensors_and_ranks_and_not_with_their_product(
    tmp_path: Path, few_layers: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few, many = (bench.measure(ranks, tmp_path, kind) for ranks in (16, 128))
    listed = bench.measure(16, tmp_path, "listed")
    # A rank adds its file's entry, its place in the cuts, and its note.
    a_rank = (many["1.read_bytes"] - few["1.read_bytes"]) / (128 - 16)
    assert a_rank < 120
    assert (many["0.merge_bytes"] - few["0.merge_bytes"]) / (128 - 16) < 600
    assert listed["1.read_bytes"] > 10 * few["1.read_bytes"]
    assert many["shares"] <= 2
    assert many["1.part_bytes"] < few["1.part_bytes"] + 20, "but for the digits, a rank's note stays as it is"
    assert many["1.share_bytes"] == few["1.share_bytes"]
    monkeypatch.setattr(bench, "LAYERS", 4)
    (tmp_path / "more").mkdir()
    more = bench.measure(128, tmp_path / "more", kind)
    a_tensor = (more["1.read_bytes"] - many["1.read_bytes"]) / (2 * 9 * 3)
    assert a_tensor < 120, "on 128 ranks"


def test_a_table_of_tensors_is_posted_once(tmp_path: Path, few_layers: None) -> None:
    bench.measure(32, tmp_path, "rows")
    names = [path.name for path in (tmp_path / "notes-32-rows").iterdir()]
    tables = [name for name in names if name.startswith("table-") and not name.endswith(".claim")]
    assert len(tables) == 2, "matrices and vectors are cut in as many dims as they have"
    assert sum(name.startswith("part-") for name in names) == 32
    assert sum("table" in name for name in names) == 2 * len(tables)
