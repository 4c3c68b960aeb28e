"""Remote corpora over a real HTTP server: cached or by range, through faults, the same stream as locally."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import ranges, remote
from data.config import DataConfig, Heldout, Source
from data.loader import HeldoutLoader
from data.manifest import read_manifest
from data.remote import RemoteStorage
from data.stream import Stream
from data.verify import verify
from made_corpus import make_corpus, random_documents
from whole_runs import records, train, write_config

pytest.importorskip("aiohttp")  # germinal[http]


class Handler(SimpleHTTPRequestHandler):
    """Serves files, ranges included; `server.script` says what befalls the next requests of a shard,
    `server.busy` which files are not to be had at once, `server.flips` (file → which arrivals of one and the
    same request) where flipped bits come, in an answer of the right length.
    """

    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.rsplit("/", 1)[-1]
        server.requests[name] += 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if name in server.busy:
            server.busy.remove(name)
            self.send_error(503)
            return
        asked, status = self.headers.get("Range"), 200
        with path.open("rb") as file:
            if asked:
                first, last = asked.removeprefix("bytes=").split("-")
                file.seek(int(first))
                raw, status = file.read(int(last) + 1 - int(first)), 206
            else:
                raw = file.read()
        fault = server.script.pop(0) if server.script and name.endswith(".tar") else ""
        if fault == "outage":
            server.outage()
            self.close_connection = True
            return
        if fault == "500":
            self.send_error(500)
            return
        if name in server.flips:
            key = (name, asked)
            server.asked[key] += 1
            raw = bytearray(raw)
            if server.flips[name](server.asked[key]):
                raw[:: max(1, len(raw) // 50)] = bytes(b ^ 1 for b in raw[:: max(1, len(raw) // 50)])
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw[: len(raw) // 2] if fault == "die" else raw)
        if fault == "die":
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


class Server:
    """An HTTP server on a free port of loopback that can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, 0
        self.requests: Counter[str] = Counter()
        self.script: list[str] = []
        self.busy: list[str] = []
        self.flips: dict[str, Callable[[int], bool]] = {}
        self.asked: Counter[tuple[str, str | None]] = Counter()
        self.outages: list[float] = []
        self.start()

    def start(self) -> None:
        handler = partial(Handler, directory=str(self._folder))
        self._server: Any = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.requests, self._server.script = self.requests, self.script
        self._server.busy, self._server.flips, self._server.asked = self.busy, self.flips, self.asked
        self._server.outage = threading.Thread(target=self._go_away_for_a_while).start
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _go_away_for_a_while(self) -> None:
        self.stop()
        self.outages.append(time.time())
        time.sleep(1)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/corpus"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(ranges, "PAUSE_SECONDS", 0.005)
    make_corpus(tmp_path / "served" / "corpus", random_documents(60, longest=200), shard_documents=10)
    server = Server(tmp_path / "served")
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "served" / "corpus"


def open_stream(path: str, **settings: Any) -> Stream:
    cfg = DataConfig([Source(path)], seq_len=32, **({"shuffle_blocks": 2} | settings))
    return Stream.open(cfg, seed=0, global_batch=4)


def epoch(stream: Stream) -> np.ndarray:
    return stream.read(range(sum(stream.sequences_per_epoch.values()))).targets


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

    monkeypatch.setattr(remote.time, "sleep", sleep)
    assert (epoch(stream) == epoch(open_stream(str(folder)))).all()
    assert len(pauses) >= 3


def test_a_server_that_stays_away_is_one_line(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(server.url)
    server.stop()
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with pytest.raises(
        RuntimeError, match=rf"shard-\d+.tar could not be read in {remote.ATTEMPTS} attempts: .*$"
    ):
        epoch(stream)
    assert all(b == 2 * a for a, b in pairwise(pauses))
    server.start()


def test_a_server_that_is_busy_or_away_at_the_start_is_not_taken_for_an_empty_one(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.busy += ["manifest.json", "manifest.json"]
    assert open_stream(server.url).fingerprint == open_stream(str(folder)).fingerprint
    server.busy += ["manifest.json", "tokenizer.json"]
    assert verify(server.url) == [] and not server.busy
    server.stop()
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
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
    blocks, _ = source._epoch(0)
    wanted = set(source.corpus.block_shard[blocks[:4]].tolist())  # two eras of two blocks
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


def everything(folder: Path, which: Callable[[int], bool]) -> dict[str, Callable[[int], bool]]:
    """Flips in every file of the corpus but none in the answers to requests that `which` leaves out."""
    return {path.name: which for path in folder.iterdir()}


@pytest.mark.parametrize("cached", [False, True])
def test_bytes_that_come_wrong_are_asked_for_again(
    tmp_path: Path, folder: Path, server: Server, cached: bool
) -> None:
    """The first answer to each request is wrong: manifest, tokenizer, indexes, shards, ranges of shards."""
    true = epoch(open_stream(str(folder)))
    server.flips |= everything(folder, lambda arrival: arrival == 1)
    stream = open_stream(server.url, cache_dir=str(tmp_path / "cache") if cached else "")
    assert (epoch(stream) == true).all()
    assert stream.sources[0].corpus.storage.tokenizer() == (folder / "tokenizer.json").read_bytes()
    assert set(server.asked.values()) == {2}


@pytest.mark.parametrize("piece_bytes", [1 << 18, 64])
def test_every_arrival_of_a_document_is_checked(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """Nothing is kept, so each read asks again: for small documents together, for large ones in parts."""
    monkeypatch.setattr(ranges, "KEPT_BYTES", 0)
    monkeypatch.setattr(ranges, "PIECE_BYTES", piece_bytes)
    true = open_stream(str(folder)).read(range(12)).targets
    server.flips |= everything(folder, lambda arrival: arrival % 2 == 0)  # right first, then flipped, …
    stream = open_stream(server.url)
    assert (stream.read(range(12)).targets == true).all()
    assert min(server.asked[key] for key in server.asked if key[0].endswith(".tar")) > 1
    server.flips |= everything(folder, lambda arrival: True)
    with pytest.raises(RuntimeError, match=r"shard http://\S+: the document at byte \d+ came right before"):
        stream.read(range(12))


def test_a_document_that_never_comes_right_is_damaged_and_its_neighbours_are_not(
    folder: Path, server: Server
) -> None:
    entry = read_manifest(folder).shards[1]
    raw = bytearray((folder / entry.file).read_bytes())
    index = np.load(folder / entry.index_file)
    raw[int(index[0][index[1] > 0][3])] ^= 1
    (folder / entry.file).write_bytes(raw)
    masked = {}
    for url in (str(folder), server.url):
        server.flips |= everything(folder, lambda arrival: arrival == 2)  # and another one is wrong at times
        stream = open_stream(url, on_corrupt="quarantine")
        masked[url] = (epoch(stream).tolist(), sorted(stream.quarantined))
    assert masked[str(folder)] == masked[server.url]
    assert masked[server.url][1]


def test_what_is_read_again_later_is_checked_again(tmp_path: Path) -> None:
    """More shards than are kept in memory, from a server that flips bits once it has answered a request."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 50_000, size=200_000) for _ in range(220)]  # 84 MiB; 64 are kept
    folder = make_corpus(tmp_path / "served" / "corpus", documents, shard_documents=20, block_documents=4)
    server = Server(tmp_path / "served")
    try:
        remote, local = (
            Stream.open(DataConfig([Source(path)], seq_len=1 << 15), seed=0, global_batch=4)
            for path in (server.url, str(folder))
        )
        length = sum(remote.sequences_per_epoch.values())
        for first in range(0, length, 100):
            remote.read(range(first, min(first + 100, length)))
        server.flips |= everything(folder, lambda arrival: arrival == 1)
        assert (remote.read(range(4)).targets == local.read(range(4)).targets).all()
        assert server.asked, "nothing was asked for again: the corpus fits into what is kept"
    finally:
        server.stop()


def test_a_run_over_a_bad_line_is_the_undisturbed_one(tmp_path: Path) -> None:
    """The real command: the first answer to each request has flipped bits."""
    texts = [ids % 499 + 1 for ids in random_documents(60, longest=200)]
    folder = make_corpus(tmp_path / "served" / "corpus", texts, shard_documents=10, vocab=500)
    server = Server(tmp_path / "served")
    lines = {}
    try:
        for name, source in (("local", str(folder)), ("remote", server.url)):
            (tmp_path / name).mkdir()
            changes: dict[str, Any] = {"model__layers": 1, "model__vocab": 500, "train__steps": 6}
            changes |= {"data__heldout": [], "train__eval_every": 0, "data__sources": [{"path": source}]}
            server.flips |= everything(folder, lambda arrival: arrival == 1)
            train(write_config(tmp_path / name, folder, **changes), nproc=1)
            lines[name] = records(tmp_path / name / "run" / "metrics.jsonl")
    finally:
        server.stop()
    assert lines["remote"] == lines["local"] and len(server.asked) > 10


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
        return [row for batch in loader for row in batch.tensors["targets"].tolist()]

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
        train(config, nproc=1)
        lines[name] = records(tmp_path / name / "run" / "metrics.jsonl")
    assert len(server.outages) == 1 and not server.script
    assert lines["remote"] == lines["local"]
