"""`germinal data verify` reads the tables beside a corpus too: damaged, stale, or counted wrongly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Source
from data.corpus.listing.catalogue import close_corpus
from data.corpus.listing.tables import Table, Tables, encode
from data.corpus.manifest import read_manifest
from data.stream.packing import counting
from data.stream.stream import Stream
from data.verify.verify import Finding, verify
from launch import cli
from made_corpus import make_corpus, random_documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = make_corpus(tmp_path / "served" / "corpus", random_documents(90), shard_documents=20)
    close_corpus(folder, read_manifest(folder))
    return folder


def catalogue_of(corpus: Path) -> Path:
    (path,) = corpus.glob("catalogue-*.safetensors")
    return path


def found_at(corpus: Path) -> Finding:
    (finding,) = verify(corpus)
    return finding


def test_a_corpus_with_its_catalogue_or_without_is_sound(corpus: Path) -> None:
    assert verify(corpus) == []
    catalogue_of(corpus).unlink()
    assert verify(corpus) == []


def test_a_damaged_catalogue_is_found_and_told_in_one_line(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalogue_of(corpus)
    raw = path.read_bytes()
    for place in (3, 60, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        finding = found_at(corpus)
        assert finding.file == str(path) and finding.problem.startswith("damaged (")
        assert "remove the file" in finding.problem and "\n" not in finding.problem
    path.write_bytes(raw[:100])
    assert found_at(corpus).problem.startswith("damaged (")
    assert cli.main(["data", "verify", str(corpus)]) == 1
    assert path.name in capsys.readouterr().out
    path.write_bytes(raw)
    assert cli.main(["data", "verify", str(corpus)]) == 0


@pytest.mark.parametrize("what", ["blocks.inputs", "numbers", "sha256", "derived", "about"])
def test_a_whole_catalogue_that_says_something_else_is_found(corpus: Path, what: str) -> None:
    """As a fault of the program that wrote it may leave one."""
    path, tables = catalogue_of(corpus), Tables([corpus])
    found = tables.read(path.stem, {})
    assert found is not None
    head: dict[str, Any] = dict(found.head)
    arrays = {name: np.array(array) for name, array in found.arrays.items()}
    if what in arrays:
        arrays[what].flat[0] += 1
    elif what == "derived":
        head["derived"] = head["derived"] | {"tokens": 1}
    else:
        head["about"] = head["about"] | {"block_documents": 7}
    path.write_bytes(encode(Table(head, arrays)))
    finding = found_at(corpus)
    assert finding.file == str(path) and f"its {what} is not what manifest.json" in finding.problem


def test_an_index_that_is_damaged_is_told_once(corpus: Path) -> None:
    index = corpus / read_manifest(corpus).shards[2].index_file
    index.write_bytes(index.read_bytes()[:-1] + b"\x07")
    assert {Path(finding.file).name for finding in verify(corpus)} == {index.name}


def test_a_catalogue_of_another_manifest_is_found_and_goes_when_the_corpus_is_completed(corpus: Path) -> None:
    path = catalogue_of(corpus)
    stale = path.rename(corpus / f"catalogue-{'0' * 16}.safetensors")
    finding = found_at(corpus)
    assert finding.file == str(stale) and finding.problem.startswith("of another manifest.json")
    close_corpus(corpus, read_manifest(corpus))
    assert not stale.exists() and path.exists() and verify(corpus) == []


def test_damaged_windows_are_found(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 50)
    Stream.open(DataConfig([Source(str(corpus))], seq_len=32, packing="best_fit"), seed=0, global_batch=4)
    (windows,) = corpus.glob("windows-*")
    assert verify(corpus) == []
    windows.write_bytes(windows.read_bytes()[:-1] + b"\x7f")
    assert found_at(corpus).file == str(windows)


def test_windows_with_a_right_hash_and_wrong_counts_are_found(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault of the program that wrote them, or somebody's hand, may leave them."""
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 50)
    cfg = DataConfig([Source(str(corpus))], seq_len=32, packing="best_fit")
    Stream.open(cfg, seed=0, global_batch=4)
    (path,) = corpus.glob("windows-*")
    found = Tables([corpus]).read(path.stem, {})
    assert found is not None
    windows = np.array(found.arrays["windows"])
    right = path.read_bytes()

    def wrong(windows: np.ndarray, problem: str, name: str = path.name, **head: Any) -> None:
        path.unlink(missing_ok=True)
        path.with_name(name).write_bytes(encode(Table(found.head | head, {"windows": windows})))
        finding = found_at(corpus)
        assert finding.file == str(path.with_name(name)) and problem in finding.problem
        assert "remove the file" in finding.problem and "\n" not in finding.problem
        path.with_name(name).unlink()

    counts = "its windows is not what manifest.json and the indexes say"
    moved = windows.copy()
    moved[0], moved[-1] = moved[0] + 1, moved[-1] - 1  # whose sum is right
    wrong(moved, counts)
    wrong(windows[:-1], counts)
    wrong(np.array([], dtype=np.int64), counts)
    wrong(windows, counts, path.name.replace("-32.", "-16."), seq_len=16)
    other = "not of this corpus, or not of what its name says"
    wrong(windows, other, seq_len=16)
    wrong(windows, other, path.name.replace("best_fit", "worst"), packing="worst")
    wrong(windows, other, path.name.replace("-32.", "-0."), seq_len=0)
    wrong(windows, other, f"windows-{'0' * 16}-best_fit-32.safetensors", corpus="0" * 64)
    path.write_bytes(right)
    assert verify(corpus) == []


def test_a_catalogue_on_a_server_is_verified(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")  # germinal[http]
    from data.corpus.remote import cache
    from served import Server

    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    path = catalogue_of(corpus)
    server = Server(corpus.parent)
    try:
        assert verify(server.url) == []
        server.flips[path.name] = lambda arrival: arrival % 2 == 1
        assert verify(server.url) == [], "damaged on its way, and asked for again"
        server.flips[path.name] = lambda arrival: True
        (finding,) = verify(server.url)
        assert finding.file == f"{server.url}/{path.name}" and finding.problem.startswith("damaged (")
    finally:
        server.stop()
