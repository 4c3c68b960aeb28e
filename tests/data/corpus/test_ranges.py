"""Remote documents whose bytes come wrong, first or later: over a real HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Source
from data.corpus.manifest import read_manifest
from data.corpus.remote import ranges
from data.stream.documents import DocumentReader
from data.stream.stream import Stream
from data.verify.verify import verify
from made_corpus import make_corpus, random_documents
from served import Server, epoch, everything, open_stream
from whole_runs import records, train, write_config

pytest.importorskip("aiohttp")  # germinal[http]


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


@pytest.mark.parametrize("request_bytes", [1 << 18, 64])
def test_every_arrival_of_a_document_is_checked(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, request_bytes: int
) -> None:
    """Nothing is kept, so each read asks again: for small documents together, for large ones in parts."""
    monkeypatch.setattr(ranges, "KEPT_BYTES", 0)
    monkeypatch.setattr(ranges, "REQUEST_BYTES", request_bytes)
    true = open_stream(str(folder)).read(range(12)).following
    server.flips |= everything(folder, lambda arrival: arrival % 2 == 0)  # right first, then flipped, …
    stream = open_stream(server.url)
    assert (stream.read(range(12)).following == true).all()
    assert min(server.asked[key] for key in server.asked if key[0].endswith(".tar")) > 1
    server.flips |= everything(folder, lambda arrival: True)
    with pytest.raises(RuntimeError, match=r"shard http://\S+: the document at byte \d+ came right before"):
        stream.read(range(12))


def test_verify_calls_nothing_damaged_that_came_wrong_once(folder: Path, server: Server) -> None:
    server.flips |= everything(folder, lambda arrival: arrival == 1)
    assert verify(server.url) == []
    server.script += ["500"] * 8
    with pytest.raises(RuntimeError, match=r"/shard-000000.tar could not be read in 8 attempts: .*500"):
        verify(server.url)  # of a server that fails nothing is known
    (folder / "shard-000001.tar").write_bytes(b"x" + (folder / "shard-000001.tar").read_bytes()[1:])
    assert {finding.file for finding in verify(server.url)} == {f"{server.url}/shard-000001.tar"}


def test_documents_without_tokens_ask_the_server_for_nothing(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    """They are in a group of their own, and alone in a shard."""
    long = np.arange(ranges.REQUEST_BYTES) % 49_999 + 1  # too long for a group
    make_corpus(folder, [[], [], long, [], [5, 6], [], [], []], shard_documents=5)
    documents = DocumentReader(open_stream(server.url).sources[0].corpus)
    for number in (0, 1, 3, 5, 6, 7):
        assert documents.ids(number).tolist() == []
    assert not any(name.endswith(".tar") for name in server.requests)
    assert [documents.ids(number).tolist() for number in (2, 4)] == [long.tolist(), [5, 6]]


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
        assert (remote.read(range(4)).following == local.read(range(4)).following).all()
        assert server.asked, "nothing was asked for again: the corpus fits into what is kept"
    finally:
        server.stop()


@pytest.mark.slow
def test_a_run_over_a_bad_line_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command: the first answer to each request has flipped bits."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # or an index may be there from another run
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
