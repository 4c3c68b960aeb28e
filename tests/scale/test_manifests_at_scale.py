"""A checkpoint's manifest and notes for many ranks, which hold no weights: sizes, counts and shares."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import checkpoint as bench  # the files of that folder
import save as modelled


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


@pytest.mark.parametrize("bandwidth", [1e8, 1e9, 1e10])
def test_rank_0_has_little_more_of_a_large_save_to_do_than_the_mean(
    tmp_path: Path, few_layers: None, bandwidth: float
) -> None:
    """840 GB over 1,024 ranks: bytes are counted here, seconds a byte are the committed measurement's."""
    measured = json.loads(modelled.RESULTS.read_text())
    assert measured["tensor_bytes"] > 840e9 and measured["ranks"] == 1024
    assert measured["rank 0's share"] <= 2 and measured["largest_of_mean"] <= 2
    host = bench.measure(128, tmp_path, "rows")
    seconds = {name: 0.0 for name in host if not name.endswith("bytes")}
    found = modelled.work(128, {**host, **seconds}, measured["cpu_seconds_a_byte"], bandwidth)
    assert found["rank 0's share"] <= 2
    assert found["beside tensors"] < 0.01
