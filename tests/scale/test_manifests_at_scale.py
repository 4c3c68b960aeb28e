"""A checkpoint's manifest and notes for many ranks, which hold no weights: sizes, counts and shares."""

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/scale"))

import checkpoint as bench  # the files of that folder
import save as modelled

from trainer.checkpoint.manifest import MANIFEST, read_manifest


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LAYERS", 2)


@pytest.mark.parametrize("kind", ["rows", "flat", "groups"])
def test_a_manifest_grows_with_the_tensors_and_the_table_of_files_with_the_ranks(
    tmp_path: Path, few_layers: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few, many = (bench.measure(ranks, tmp_path, kind) for ranks in (16, 128))
    listed = bench.measure(16, tmp_path, "listed")
    # A rank adds its file's row and its note.
    assert abs(many["manifest_bytes"] - few["manifest_bytes"]) < 100, "digits"
    assert 50 < (many["table_bytes"] - few["table_bytes"]) / (128 - 16) < 120
    assert (many["0.merge_bytes"] - few["0.merge_bytes"]) / (128 - 16) < 600
    assert listed["1.read_bytes"] > 10 * few["1.read_bytes"]
    assert many["shares"] <= 2
    assert many["1.part_bytes"] < few["1.part_bytes"] + 20, "but for the digits, a rank's note stays as it is"
    monkeypatch.setattr(bench, "LAYERS", 4)
    (tmp_path / "more").mkdir()
    more = bench.measure(128, tmp_path / "more", kind)
    a_tensor = (more["1.read_bytes"] - many["1.read_bytes"]) / (2 * 9 * 3)
    assert a_tensor < 120, "on 128 ranks"


def counted(action: Callable[[], Any]) -> dict[str, float]:
    """Calls and lines of Python that the action takes, bytes that it reads, and the peak of its memory."""
    found = {"calls": 0.0, "lines": 0.0}

    def traced(frame: Any, event: str, argument: Any) -> Any:
        found["calls" if event == "call" else "lines"] += event in ("call", "line")
        return traced

    with bench.counted_rows() as rows:
        action()
    before = sys.gettrace()
    sys.settrace(traced)
    try:
        action()
    finally:
        sys.settrace(before)
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {**found, "bytes": sum(rows), "reads": len(rows), "peak": peak}


def of_a_middle_rank(ranks: int, folder: Path, kind: str) -> dict[str, dict[str, float]]:
    """What it takes a rank in the middle to find what it loads, verifies and describes."""
    rank = ranks // 2 + 1
    bench.measure(ranks, folder, kind)
    at, chunks = folder / f"manifest-{ranks}-{kind}", bench.chunks_of(rank, ranks, kind)

    def share(shift: int) -> None:
        assert len(read_manifest(at).files.share_of(rank, ranks, shift=shift)) == 1

    return {
        "load": counted(lambda: bench.reading(at, chunks)),
        "prove": counted(lambda: share(0)),
        "verify": counted(lambda: share(ranks // 2)),
        "describe": counted(lambda: bench.part_of(rank, chunks)),
        "all": {"pieces": len(chunks), "manifest": (at / MANIFEST).stat().st_size},
    }


@pytest.mark.parametrize(
    ("kind", "worlds"), [("rows", (64, 4096)), ("flat", (63, 4095)), ("groups", (63, 4095))]
)
def test_a_rank_reads_and_computes_no_more_of_a_checkpoint_by_64_times_the_ranks(
    tmp_path: Path, few_layers: None, kind: str, worlds: tuple[int, int]
) -> None:
    """By 63 a flattened matrix is cut inside of rows: a part has three blocks, and by more ranks not more."""
    few, many = (of_a_middle_rank(ranks, tmp_path, kind) for ranks in worlds)
    assert 0 < many["all"]["pieces"] <= few["all"]["pieces"]
    for name, figures in few.items():
        for (
            figure,
            value,
        ) in figures.items():  # but for the digits of numbers, and what Python holds of large ones
            assert many[name][figure] <= 1.1 * value + 64, (name, figure)
    assert many["load"]["reads"] == many["verify"]["reads"] == 1, "of the table"


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
