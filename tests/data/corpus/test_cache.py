"""Remote corpora over a real HTTP server: cached or by range, through faults, the same stream as locally."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import Heldout
from data.corpus.manifest import read_manifest
from data.corpus.remote import fetching
from data.corpus.remote.remote_storage import RemoteStorage
from data.stream.heldout import HeldoutLoader
from data.verify.verify import verify
from made_corpus import make_corpus, random_documents
from served import Server, epoch, open_stream
from whole_runs import records, train, train_here, write_config

pytest.importorskip("aiohttp")  # germinal[http]


@pytest.mark.parametrize("cached", [True, False])
def test_a_remote_corpus_gives_the_local_stream_through_faults(
    tmp_path: Path, folder: Path, server: Server, cached: bool
) -> None:
    cache_dir = str(tmp_path / "cache") if cached else ""
    stream = open_stream(server.url, cache_dir=cache_dir)
    assert stream.fingerprint == open_stream(str(folder)).fingerprint
    server.script += ["die", "500", "", "die", "die", "500"]
    assert (epoch(stream) == epoch(open_stream(str(folder)))).all()
    assert not server.script


def test_a_server_that_dies_and_comes_back(
    tmp_path: Path, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(server.url, cache_dir=str(tmp_path / "cache"))
    stream.read([0])
    server.stop()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            server.start()

    monkeypatch.setattr(time, "sleep", sleep)
    assert (epoch(stream) == epoch(open_stream(str(folder)))).all()
    assert len(pauses) >= 3


def test_a_server_that_stays_away_is_one_line(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(server.url)
    server.stop()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(
        RuntimeError, match=rf"shard-\d+.tar could not be read in {fetching.ATTEMPTS} attempts: .*$"
    ):
        epoch(stream)
    assert all(b == 2 * a for a, b in pairwise(pauses))
    server.start()


def test_a_slow_file_has_no_limit_but_a_silent_server_has(server: Server) -> None:
    filesystem, _ = fetching.open_filesystem(server.url)
    timeout = filesystem.client_kwargs["timeout"]
    assert timeout.total is None and timeout.sock_connect and timeout.sock_read


def test_refused_access_is_final_and_retries_are_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = open_stream(server.url)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.script += ["403"]
    with pytest.raises(RuntimeError, match=r"\.tar may not be read: .*403.*: check the URL"):
        stream.read([0])
    assert not pauses and not capsys.readouterr().err
    server.script += ["500", "500", "500"]
    stream.read([0])
    assert len(pauses) == 3 and "tried twice, and again" in capsys.readouterr().err


def test_a_server_that_is_busy_or_away_at_the_start_is_not_taken_for_an_empty_one(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.busy += ["manifest.json", "manifest.json"]
    assert open_stream(server.url).fingerprint == open_stream(str(folder)).fingerprint
    server.busy += ["manifest.json", "tokenizer.json"]
    assert verify(server.url) == [] and not server.busy
    server.stop()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(
        RuntimeError, match=r"^http://\S+/corpus/manifest\.json could not be read in 8 attempts"
    ):
        open_stream(server.url)
    assert len(pauses) == 7, "none after the last attempt"
    server.start()


def test_shards_are_fetched_once_for_all_ranks_and_kept_for_the_next_run(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    def rank(_: int) -> np.ndarray:
        return epoch(open_stream(server.url, cache_dir=str(tmp_path / "cache")))

    true = epoch(open_stream(str(folder)))
    with ThreadPoolExecutor(4) as ranks:
        assert all((read == true).all() for read in ranks.map(rank, range(4)))
    rank(0)
    shards = [entry.file for entry in read_manifest(folder).shards]
    assert [server.requests[file] for file in shards] == [1] * len(shards)


def test_the_cache_is_bounded_and_evicts_the_least_recently_used(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    entries = read_manifest(folder).shards
    limit = sum(sorted(entry.bytes for entry in entries)[-2:]) + 100
    storage = RemoteStorage(server.url, str(tmp_path / "cache"), limit)

    def cached() -> set[str]:
        return {path.name for path in (tmp_path / "cache").iterdir() if not path.suffix}

    first = storage.open(0)
    storage.open(1)
    storage.open(0)
    storage.open(2)
    assert cached() == {entries[0].sha256, entries[2].sha256}
    storage.open(3)
    assert cached() == {entries[2].sha256, entries[3].sha256}
    assert bytes(first.view) == (folder / entries[0].file).read_bytes()  # evicted, and still mapped
    with pytest.raises(ValueError, match=r"data\.cache_bytes=1000 holds no shard"):
        RemoteStorage(server.url, str(tmp_path / "other"), 1000).open(0)


def test_the_next_era_is_fetched_ahead(tmp_path: Path, folder: Path, server: Server) -> None:
    stream = open_stream(server.url, cache_dir=str(tmp_path / "cache"))
    stream.read([0])
    source = stream.sources[0]
    storage: Any = source.corpus.storage
    storage._fetcher.join(timeout=30)
    entries = read_manifest(folder).shards
    blocks = np.concatenate([source.order.blocks(0, era) for era in range(2)])
    wanted = set(source.corpus.block_shard[blocks].tolist())  # of two blocks each
    have = {path.name for path in (tmp_path / "cache").iterdir() if not path.suffix}
    assert have == {entries[shard].sha256 for shard in wanted}


def test_a_shard_that_changes_under_the_run_and_a_damaged_copy_are_found(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    true = epoch(open_stream(str(folder)))
    cache_dir = tmp_path / "cache"
    epoch(open_stream(server.url, cache_dir=str(cache_dir)))
    entry = read_manifest(folder).shards[2]
    copy = cache_dir / entry.sha256
    damaged = bytearray(copy.read_bytes())
    damaged[2000] ^= 1
    copy.write_bytes(damaged)
    assert (epoch(open_stream(server.url, cache_dir=str(cache_dir))) == true).all()  # fetched anew
    assert server.requests[entry.file] == 2

    whole, ranged = open_stream(server.url, cache_dir=str(tmp_path / "empty")), open_stream(server.url)
    raw = bytearray((folder / entry.file).read_bytes())
    index = np.load(folder / entry.index_file)
    for offset, tokens in index[:2].T.tolist():
        if tokens:
            raw[offset] ^= 1
    (folder / entry.file).write_bytes(raw)
    with pytest.raises(RuntimeError, match=rf"{entry.file} does not have the SHA-256"):
        epoch(whole)
    with pytest.raises(RuntimeError, match=rf"{entry.file}: sample '\d+', byte \d+: .*checksum"):
        epoch(ranged)


def test_what_is_not_there_is_one_line(tmp_path: Path, folder: Path, server: Server) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a corpus: it has no manifest\.json"):
        open_stream(server.url + "/nowhere")
    stream = open_stream(server.url)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(RuntimeError, match=r"shard-000001\.tar is missing"):
        epoch(stream)


def test_heldout_is_read_remotely(folder: Path, server: Server) -> None:
    def batches(path: str) -> list[list[int]]:
        loader = HeldoutLoader(Heldout(path), seq_len=32, rank=0, ranks=1, micro_batch=4)
        return [row for batch in loader for row in batch.tensors["following"].tolist()]

    assert batches(server.url) == batches(str(folder))


def test_a_run_outlives_its_server(tmp_path: Path, server: Server, folder: Path) -> None:
    """The real command: the server goes away in the middle of its shards, and comes back."""
    shutil.rmtree(folder)  # for one whose vocabulary makes a small model
    texts = [ids % 499 + 1 for ids in random_documents(60, longest=200)]
    make_corpus(folder, texts, shard_documents=10, vocab=500)
    lines = {}
    for name, source in (("remote", server.url), ("local", str(folder))):
        (tmp_path / name).mkdir()
        if name == "remote":
            server.script += ["", "", "outage"]
        changes: dict[str, Any] = {"model__layers": 1, "model__vocab": 500, "train__steps": 6}
        changes |= {"data__heldout": [], "train__eval_every": 0}
        config = write_config(tmp_path / name, folder, data__sources=[{"path": source}], **changes)
        if name == "remote":
            train(config, nproc=1)
        else:
            assert train_here(config)
        lines[name] = records(tmp_path / name / "run" / "metrics.jsonl")
    assert len(server.outages) == 1 and not server.script
    assert lines["remote"] == lines["local"]
