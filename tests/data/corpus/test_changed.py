"""Local corpora that change while they are read: noticed before an altered byte is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Source
from data.corpus.corpus import open_storage
from data.corpus.manifest import read_manifest
from data.stream.loader import Loader
from data.stream.stream import Stream
from made_corpus import make_corpus, random_documents
from whole_runs import GERMINAL, records, write_config


def open_stream(path: Path, **settings: Any) -> Stream:
    cfg = DataConfig([Source(str(path))], seq_len=32, shuffle_blocks=2, **settings)
    return Stream.open(cfg, seed=0, global_batch=4)


def damage(shard: Path, index: Path) -> None:
    """Writes into the first id of every document, in place, and sets the file's times back."""
    before = shard.stat()
    with shard.open("r+b") as file:
        for offset, tokens in np.load(index)[:2].T.tolist():
            if tokens:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_run_reads_more_shards_than_the_soft_limit_lets_it_open(tmp_path: Path) -> None:
    documents = [ids % 499 + 1 for ids in random_documents(150, longest=200)]
    make_corpus(tmp_path / "corpus", documents, shard_documents=1, vocab=500)
    changes: dict[str, Any] = {"data__sources": [{"path": str(tmp_path / "corpus")}], "data__heldout": []}
    changes |= {"data__seq_len": 32, "data__shuffle_blocks": 150, "train__eval_every": 0, "train__steps": 1}
    changes |= {"model__layers": 1, "model__hidden": 16, "model__heads": 1, "model__kv_heads": 1}
    changes |= {"model__vocab": 500, "optim__schedule": "constant"}
    config = write_config(tmp_path, tmp_path / "corpus", **changes)
    command = f"ulimit -Sn 128 && exec {sys.executable} -m trainer {config}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_altered_documents_never_become_tokens(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)
    entry = read_manifest(tmp_path / "corpus").shards[2]
    shard, index = tmp_path / "corpus" / entry.file, tmp_path / "corpus" / entry.index_file
    whole = shard.read_bytes()
    stream = open_stream(tmp_path / "corpus")
    numbers = range(sum(stream.sequences_per_epoch.values()))
    true = stream.read(numbers).following
    located = stream.locate(numbers)  # everything is checked
    time.sleep(0.02)
    damage(shard, index)
    assert not located.unchanged()
    with pytest.raises(RuntimeError, match=rf"{entry.file}: sample '\d+', byte \d+: .*checksum"):
        stream.read(numbers)
    masked = open_stream(tmp_path / "corpus", on_corrupt="quarantine")
    assert masked.read(numbers).following.tolist() != true.tolist() and masked.quarantined
    shard.write_bytes(whole)
    assert (stream.read(numbers).following == true).all()  # restored: it goes on
    time.sleep(0.02)
    os.utime(shard)
    assert (stream.read(numbers).following == true).all()  # touched only
    os.truncate(shard, entry.bytes // 2)
    with pytest.raises(RuntimeError, match=rf"{entry.file} had \d+ bytes when it was opened and has \d+ now"):
        stream.read(numbers)


def replaced(corpus: Path, other: Path, pattern: str) -> None:
    for path in other.glob(pattern):
        os.replace(path, corpus / path.name)


def until_refused(stream: Stream, true: np.ndarray) -> tuple[int, str]:
    """How many sequences of an epoch are read, each as it truly is, and what is said of the next."""
    for number, tokens in enumerate(true):
        try:
            assert (stream.read([number]).tokens == tokens).all()
        except RuntimeError as error:
            return number, str(error)
    return len(true), ""


@pytest.mark.parametrize("pattern", ["shard-*", "*.tar", "*.npy"])
def test_another_corpus_never_takes_the_place_of_the_one_that_is_read(tmp_path: Path, pattern: str) -> None:
    """Renamed over it, shards of equal sizes with their indexes, each without a fault of its own."""
    for name, first in (("corpus", 1), ("other", 20_000)):
        ids = [np.arange(first + i, first + i + 40) for i in range(60)]
        make_corpus(tmp_path / name, ids, shard_documents=10)
    stream = open_stream(tmp_path / "corpus")
    count = sum(stream.sequences_per_epoch.values())
    true = open_stream(tmp_path / "corpus").read(range(count)).tokens
    stream.read([0])
    replaced(tmp_path / "corpus", tmp_path / "other", pattern)
    read, said = until_refused(stream, true)
    assert 0 < read < count  # what was opened before goes on
    expected = "checksum" if pattern == "*.tar" else r"^index \S+ was replaced or written to during the run"
    assert re.search(expected, said) and "\n" not in said


def test_a_corpus_that_is_renamed_over_itself_goes_on(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)
    shutil.copytree(tmp_path / "corpus", tmp_path / "copy")
    stream = open_stream(tmp_path / "corpus")
    numbers = range(sum(stream.sequences_per_epoch.values()))
    true = stream.read(numbers).following
    replaced(tmp_path / "corpus", tmp_path / "copy", "shard-*")
    assert (stream.read(numbers).following == true).all()


def test_an_index_that_is_cut_short_or_altered_is_noticed_when_it_is_next_read(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)
    path = tmp_path / "corpus" / "shard-000002.idx.npy"
    storage = open_storage(str(tmp_path / "corpus"))
    whole, raw = storage.index(2), path.read_bytes()
    assert (storage.index(2, 3, 5) == whole[:, 3:5]).all()
    time.sleep(0.02)
    for damaged in (raw[:300], raw[:-1] + b"\1", b""):
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match=rf"^index {path} was replaced or written to during the run"):
            storage.index(2)
    path.write_bytes(raw)
    assert (storage.index(2) == whole).all()
    path.unlink()
    with pytest.raises(RuntimeError, match=rf"^index {path} cannot be read: No such file"):
        storage.index(2)


def test_a_loader_delivers_the_same_steps_while_a_shard_is_touched(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", random_documents(60, longest=200), shard_documents=10)

    def steps(stream: Stream, *, touching: bool) -> list[list[list[int]]]:
        shard = tmp_path / "corpus" / "shard-000001.tar"
        loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=4, prefetch=1)
        found = []
        for _, micro in zip(range(60), loader):
            if touching:
                os.utime(shard)
            found.append(micro[0].tensors["following"].tolist())
        loader.close()
        return found

    undisturbed = steps(open_stream(tmp_path / "corpus"), touching=False)
    assert steps(open_stream(tmp_path / "corpus"), touching=True) == undisturbed


@pytest.mark.slow
def test_a_run_whose_shard_changes_stops_with_one_line(tmp_path: Path) -> None:
    """The real command: the shards are altered in place, or cut short, while the run reads. Of the altered
    bytes nothing reaches a step: the losses are those of the other run, which could only read whole ones.
    """
    documents = [ids % 499 + 1 for ids in random_documents(400, longest=4000)]
    losses = {}
    for how in ("altered", "cut short"):
        folder = tmp_path / how.replace(" ", "-")
        folder.mkdir()
        make_corpus(folder / "corpus", documents, shard_documents=100, vocab=500)
        sources = [{"path": str(folder / "corpus")}]
        changes: dict[str, Any] = {"data__sources": sources, "data__heldout": [], "data__seq_len": 256}
        changes |= {"model__layers": 1, "model__hidden": 16, "model__heads": 1, "model__kv_heads": 1}
        changes |= {"model__vocab": 500, "optim__schedule": "constant", "train__eval_every": 0}
        changes |= {
            "train__global_batch": 32,
            "train__micro_batch": 32,
            "train__steps": 5000,
            "supervise__restarts": 0,  # a shard that is cut short may be a file server's hiccup: tried again
        }
        config = write_config(folder, folder / "corpus", **changes)
        metrics = folder / "run" / "metrics.jsonl"
        with (folder / "stderr").open("w+") as errors:
            run = subprocess.Popen([GERMINAL, "train", config], stderr=errors)
            deadline = time.monotonic() + 120
            while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 2):
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            for entry in read_manifest(folder / "corpus").shards:
                shard = folder / "corpus" / entry.file
                if how == "altered":
                    damage(shard, folder / "corpus" / entry.index_file)
                else:
                    os.truncate(shard, 1000)
            code = run.wait(timeout=120)
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.startswith("error: ")]
        if how == "altered":
            assert code == 1 and len(said) == 1 and "do not have the checksum in the index" in said[0]
        elif how == "cut short":
            assert code == 1 and len(said) == 1
            assert "cut short" in said[0] and ".tar" in said[0]
        losses[how] = [record["loss"] for record in records(metrics)]
        shutil.rmtree(folder / "corpus")
    common = min(map(len, losses.values()))
    assert common > 2 and losses["altered"][:common] == losses["cut short"][:common]
