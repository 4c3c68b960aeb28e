"""Corpora in an S3-compatible store (moto's server, on loopback): trained from, prepared from, verified,
inspected; through faults.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Source
from data.corpus.manifest import read_manifest
from data.corpus.remote import fetching
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.stream.stream import Stream
from data.verify.verify import verify
from made_corpus import make_corpus, random_documents
from whole_runs import germinal, records, train, write_config
from whole_runs import make_corpus as prepare_corpus

boto3 = pytest.importorskip("boto3")
s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


class Store:
    """A bucket, `corpora`, on a server that can be stopped and started again on its port; it keeps its
    objects.
    """

    def __init__(self) -> None:
        self._port = 0
        self.start()
        self.client = boto3.client("s3", endpoint_url=self.endpoint)
        self.client.create_bucket(Bucket="corpora")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = moto_server.ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    def put(self, folder: Path, prefix: str) -> str:
        """Uploads a folder; its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), "corpora", f"{prefix}/{path.relative_to(folder)}")
        return f"s3://corpora/{prefix}"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of a started command
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetching, "FIRST_PAUSE_SECONDS", 0.05)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    store = Store()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()  # it would go on asking another test's server
    yield store
    for entry in store.client.list_objects_v2(Bucket="corpora").get("Contents", []):
        store.client.delete_object(Bucket="corpora", Key=entry["Key"])
    store.client.delete_bucket(Bucket="corpora")
    store.stop()


def open_stream(path: str, **settings: Any) -> Stream:
    cfg = DataConfig([Source(path)], seq_len=32, shuffle_blocks=2, **settings)
    return Stream.open(cfg, seed=0, global_batch=4)


def epoch(stream: Stream) -> np.ndarray:
    return stream.read(range(sum(stream.sequences_per_epoch.values()))).following


@pytest.mark.parametrize("cached", [True, False])
def test_the_stream_is_the_local_one_and_outlives_the_server(
    tmp_path: Path, store: Store, cached: bool
) -> None:
    folder = make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)
    settings = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    stream, local = open_stream(store.put(folder, "made"), **settings), open_stream(str(folder))
    assert stream.fingerprint == local.fingerprint
    first = stream.read([0])
    store.stop()

    def come_back() -> None:
        time.sleep(0.5)
        store.start()

    waiting = threading.Thread(target=come_back)
    waiting.start()
    assert (epoch(stream) == epoch(local)).all()
    waiting.join()
    assert (first.following == local.read([0]).following).all()


def test_a_shard_that_changes_under_the_run_is_found(tmp_path: Path, store: Store) -> None:
    folder = make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)
    url = store.put(folder, "changing")
    whole, ranged = open_stream(url, cache_dir=str(tmp_path / "cache")), open_stream(url)
    assert verify(url) == []
    entry = read_manifest(folder).shards[2]
    raw = bytearray((folder / entry.file).read_bytes())
    for offset, tokens in np.load(folder / entry.index_file)[:2].T.tolist():
        raw[offset] ^= 1 if tokens else 0
    store.client.upload_fileobj(io.BytesIO(raw), "corpora", f"changing/{entry.file}")
    with pytest.raises(RuntimeError, match=rf"s3://.*{entry.file} does not have the SHA-256"):
        epoch(whole)
    with pytest.raises(RuntimeError, match=rf"s3://.*{entry.file}: sample '\d+', byte \d+: .*checksum"):
        epoch(ranged)
    found = verify(url)
    assert {finding.file for finding in found} == {f"{url}/{entry.file}"}
    assert any("SHA-256" in finding.problem for finding in found)
    store.client.delete_object(Bucket="corpora", Key=f"changing/{entry.file}")
    assert "cannot be read" in verify(url)[0].problem


def test_a_corpus_is_prepared_from_s3_and_the_same_as_from_disk(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "texts"
    (source / "more").mkdir(parents=True)
    rows = [json.dumps({"text": f"document {i} says {'so ' * (i % 40)}"}) for i in range(200)]
    (source / "a.jsonl").write_text("\n".join(rows[:120]))
    (source / "more" / "b.jsonl").write_text("\n".join(rows[120:]))
    url = store.put(source, "texts")
    prints = {}
    for name, sources in (
        ("disk", [str(source / "a.jsonl"), str(source / "more" / "b.jsonl")]),
        ("named", [f"{url}/a.jsonl", f"{url}/more/b.jsonl"]),
        ("folder", [f"{url}/"]),
        ("glob", [f"{url}/**/*.jsonl"]),
    ):
        out = tmp_path / name
        report = prepare(
            sources, out, tokenizer="bytes", heldout=0.0, workers=1, recipe=Recipe(), progress=False
        )
        assert report.train.documents == 200, name
        prints[name] = sorted(entry.tokens for entry in read_manifest(out).shards)
    assert len({str(tokens) for tokens in prints.values()}) == 1
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        prepare([f"{url}/nowhere.jsonl"], tmp_path / "no", tokenizer="bytes", workers=1, progress=False)


def test_no_credentials_is_one_line(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RuntimeError, match=r"^source s3://corpora/x cannot be reached: NoCredentialsError"):
        expand(["s3://corpora/x"], Recipe())


@pytest.mark.slow
def test_a_run_reads_s3_as_it_reads_the_disk(tmp_path: Path, store: Store) -> None:
    """By range, and through the cache on two ranks; then `data inspect` and `data verify` of the URL."""
    corpus = prepare_corpus(tmp_path, documents=24)
    url = store.put(corpus, "run")
    remote = {
        "data__sources": [{"path": f"{url}/train"}],
        "data__heldout": [{"path": f"{url}/heldout", "name": "made_up"}],
    }
    cached = remote | {"data__cache_dir": str(tmp_path / "cache")}
    metrics = {}
    for name, nproc, changes in (("local", 1, {}), ("ranged", 1, remote), ("cached", 2, cached)):
        (tmp_path / name).mkdir()
        changes = {"model__layers": 1, "train__steps": 6, **changes}
        train(write_config(tmp_path / name, corpus, **changes), nproc=nproc)
        metrics[name] = records(tmp_path / name / "run" / "metrics.jsonl")
    assert metrics["ranged"] == metrics["local"]
    losses = [[line.get("loss", 0.0) for line in metrics[name]] for name in ("local", "cached")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    shards = [path for path in (tmp_path / "cache").iterdir() if path.is_file() and not path.suffix]
    assert len(shards) == 2, "one of each side, fetched once for both ranks"

    traced, same = (
        json.loads(germinal("data", "inspect", tmp_path / name / "run", "--sequence", 3, "--json").stdout)
        for name in ("ranged", "local")
    )
    assert traced["pieces"] == same["pieces"] and traced["pieces"][0]["meta"]["source"]
    seen = germinal("data", "inspect", url, "--json", "--seq-len", 32)
    assert [part["path"] for part in json.loads(seen.stdout)["corpora"]] == [f"{url}/heldout", f"{url}/train"]
    assert germinal("data", "verify", url).returncode == 0
    nowhere = germinal("data", "verify", f"{url}/nowhere")
    assert nowhere.returncode == 2 and "is not a corpus" in nowhere.stderr
    assert len(nowhere.stderr.splitlines()) == 1
