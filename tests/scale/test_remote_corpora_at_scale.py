"""How many requests a start on a remote corpus makes, and what its processes share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.mapped_file import MappedFile
from data.corpus.corpus import corpora_in, open_storage
from data.corpus.listing.catalogue import catalogue_name, close_corpus
from data.corpus.manifest import MANIFEST, read_manifest
from data.corpus.remote import cache, remote_storage
from data.corpus.remote.cache import FileCache, Wanted
from data.corpus.remote.remote_storage import RemoteStorage
from data.stream.packing import counting
from made_corpus import linked_corpus, make_corpus, random_documents
from served import Server, epoch, open_stream

pytest.importorskip("aiohttp")  # germinal[http]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of 30 shards; readers have a folder of indexes of their own."""
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    folder = make_corpus(tmp_path / "served" / "corpus", random_documents(90), shard_documents=3)
    close_corpus(folder, read_manifest(folder))
    return folder


def test_a_thousand_shards_are_opened_by_two_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    served = linked_corpus(tmp_path, 1000).rename(tmp_path / "corpus")
    server = Server(tmp_path)
    try:
        stream = open_stream(server.url)
        (catalogue,) = served.glob("catalogue-*")
        assert server.requests == {MANIFEST: 1, catalogue.name: 1}
        stream.read([0])
        assert sum(server.requests.values()) <= 2 + 2 * 2, "an index and a range for each shard of the era"
        other = open_stream(server.url)  # as another process of the machine
        assert (other.read([0]).tokens == stream.read([0]).tokens).all()
        indexes = [count for file, count in server.requests.items() if file.endswith(".npy")]
        assert indexes == [1], "all shards are one, and it was fetched for both"
        assert server.requests[catalogue.name] == 1 and server.requests[MANIFEST] == 2
    finally:
        server.stop()


def test_a_catalogue_that_comes_damaged_is_asked_for_again_and_done_without(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (catalogue,) = served.glob("catalogue-*")
    true = epoch(open_stream(str(served)))
    server = Server(served.parent)
    try:
        server.flips[catalogue.name] = lambda arrival: arrival == 1
        assert (epoch(open_stream(server.url)) == true).all()
        monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "served"))
        server.flips[catalogue.name] = lambda arrival: True
        assert (epoch(open_stream(server.url)) == true).all()
        assert f"{catalogue.name} is damaged" in capsys.readouterr().err
    finally:
        server.stop()


def test_a_cached_catalogue_that_is_damaged_is_fetched_again_in_silence(
    tmp_path: Path, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(served.parent)
    try:
        for requests in (1, 2, 2):
            storage = open_storage(server.url)
            assert storage.listing.blocks is not None and not storage.listing.is_damaged
            (copy,) = tmp_path.glob("germinal-indexes-*/tables/catalogue-*")
            assert server.requests[copy.name] == requests
            if requests == 1:
                copy.write_bytes(copy.read_bytes()[:-1] + b"\x01")
        assert not capsys.readouterr().err
    finally:
        server.stop()


def test_without_a_cache_a_fetched_catalogue_is_kept_nowhere(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that is left is of a run which nobody holds yet."""
    monkeypatch.setattr(remote_storage, "index_folder", lambda: None)
    server = Server(served.parent)
    try:
        storage = open_storage(server.url, spare=[tmp_path / "run/counts"])
        assert storage.listing.blocks is not None and not (tmp_path / "run").exists()
    finally:
        server.stop()


def test_a_corpus_without_a_catalogue_is_counted_once_for_the_processes_of_a_machine(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 50)
    for table in served.glob("catalogue-*"):
        table.unlink()
    true = epoch(open_stream(str(served)))
    for table in served.glob("catalogue-*"):
        table.unlink()
    server = Server(served.parent)
    try:
        for start in range(2):
            server.requests.clear()
            open_stream(server.url, packing="best_fit")
            assert sum(server.requests.values()) == (32 if start == 0 else 1)
            assert epoch(open_stream(server.url)).shape == true.shape
    finally:
        server.stop()


def test_the_indexes_of_a_machine_are_bounded(tmp_path: Path, served: Path) -> None:
    server = Server(served.parent)
    try:
        storage = RemoteStorage(server.url, str(tmp_path / "cache"), 2000)
        for shard in range(30):
            entry = read_manifest(served).shards[shard]
            expected = np.load(served / entry.index_file)
            assert (storage.index(shard) == expected).all()
            found = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".idx"]
            assert 0 < sum(path.stat().st_size for path in found) <= 2000
            assert not any(path.name.endswith(".part") for path in (tmp_path / "cache").iterdir())
    finally:
        server.stop()


def test_what_is_at_a_url_is_found_by_the_first_bytes_of_manifests(served: Path) -> None:
    server = Server(served.parent)
    try:
        assert corpora_in(server.url) == [server.url]
        with pytest.raises(ValueError, match="is not a corpus"):
            corpora_in(server.url.removesuffix("/corpus"))
        assert set(server.sent) == {MANIFEST} and server.sent[MANIFEST] <= 64
    finally:
        server.stop()


def test_catalogues_of_remote_corpora_are_within_the_bound_of_their_cache(tmp_path: Path) -> None:
    """The one that was used last stays; shards make room for tables, and tables for shards."""
    sizes = []
    for number in range(3):
        folder = make_corpus(tmp_path / f"served/{number}/corpus", random_documents(90, seed=number))
        close_corpus(folder, read_manifest(folder))
        sizes += [path.stat().st_size for path in folder.glob("catalogue-*")]
    limit, kept = sum(sizes) - 1, tmp_path / "cache/tables"
    server = Server(tmp_path / "served")
    urls = [server.url.replace("/corpus", f"/{number}/corpus") for number in range(3)]
    try:
        names = []
        for url in urls:
            names.append(catalogue_name(RemoteStorage(url, str(tmp_path / "cache"), limit).listing.digest))
            RemoteStorage(urls[0], str(tmp_path / "cache"), limit)
        assert {path.stem for path in kept.iterdir()} == {names[0], names[2]}
        assert server.requests[f"{names[0]}.safetensors"] == 1, "it never left"
        storage = RemoteStorage(urls[1], str(tmp_path / "small"), min(sizes) - 1)
        assert storage.listing.blocks is not None and not list((tmp_path / "small/tables").iterdir())
    finally:
        server.stop()
    files = FileCache(tmp_path / "cache", limit)
    wanted = Wanted(cache.xxhash.xxh3_128(b"right").hexdigest(), cache.INDEX, limit - sizes[0])
    files.open(wanted, lambda path: path.write_bytes(b"right"))  # type: ignore[arg-type, return-value]
    assert [path.stem for path in kept.iterdir()] == [names[0]]


def test_a_cached_index_that_is_damaged_is_fetched_again(tmp_path: Path) -> None:
    files = FileCache(tmp_path, 1000)
    wanted = Wanted(cache.xxhash.xxh3_128(b"right").hexdigest(), cache.INDEX, 5)
    fetched = []

    def fetch(path: Path) -> None:
        fetched.append(path)
        path.write_bytes(b"right")

    def content(opened: MappedFile) -> bytes:
        return bytes(opened.view)

    assert content(files.open(wanted, fetch)) == b"right" and len(fetched) == 1
    assert content(files.open(wanted, fetch)) == b"right" and len(fetched) == 1
    (copy,) = tmp_path.glob("*.idx")
    copy.write_bytes(b"wrong")
    assert content(files.open(wanted, fetch)) == b"right" and len(fetched) == 2
