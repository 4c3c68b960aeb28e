"""The manifest: what was written is read, and nothing that is half, foreign or edited passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus.index import read_index
from data.corpus.manifest import MANIFEST, OFFSET, read_manifest, write_manifest
from made_corpus import make_corpus, numbered_documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", numbered_documents([3, 0, 5, 7]), shard_documents=2)


def test_round_trip(corpus: Path) -> None:
    manifest = read_manifest(corpus)
    assert (manifest.documents, manifest.tokens, manifest.text_bytes) == (4, 15, 45)
    write_manifest(corpus, manifest)
    assert read_manifest(corpus) == manifest
    assert not list(corpus.glob("*.tmp"))


def test_the_index_points_at_the_raw_ids(corpus: Path) -> None:
    entry = read_manifest(corpus).shards[1]
    index = read_index(corpus / entry.index_file, entry)
    raw = (corpus / entry.file).read_bytes()
    offset = int(index[OFFSET, 1])
    assert np.frombuffer(raw, np.uint16, 7, offset).tolist() == list(range(9, 16))


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a corpus: no such folder; make one with `.*$"):
        read_manifest(tmp_path / "nowhere")
    (corpus / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"is not a corpus: it has no manifest\.json"):
        read_manifest(corpus)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["dtype"], "float64"),
        (["block_documents"], 0),
        (["tokenizer", "eos"], 70_000),
        (["shards", 0, "file"], "../shard-000000.tar"),
        (["shards", 0, "file"], "shard-000001.tar"),
        (["shards", 0, "documents"], -1),
        (["shards", 0, "sha256"], "zz"),
        (["shards", 0, "sha256"], "00"),
        (["fingerprint"], "00"),
        (["sources"], ["another"]),
        (["shards", 0, "sample_bytes"], 1),
        (["sha255"], "00"),
    ],
)
def test_an_edited_manifest_is_refused(corpus: Path, path: list[Any], value: Any) -> None:
    document = json.loads((corpus / MANIFEST).read_text())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (corpus / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(RuntimeError, match=r"^[^\n]*manifest\.json is damaged \([^\n]*$"):
        read_manifest(corpus)


def test_another_version_and_another_format_are_refused(corpus: Path) -> None:
    document = json.loads((corpus / MANIFEST).read_text())
    (corpus / MANIFEST).write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(ValueError, match="format version 99, this program reads 1 and 2"):
        read_manifest(corpus)
    for text in ('{"format": "other"}', "[]", "{", ""):
        (corpus / MANIFEST).write_text(text)
        with pytest.raises(RuntimeError, match="damaged"):
            read_manifest(corpus)


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path: Path, corpus: Path) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    assert read_manifest(tmp_path / "copy").fingerprint == read_manifest(corpus).fingerprint
    other = make_corpus(tmp_path / "other", numbered_documents([3, 0, 5, 8]), shard_documents=2)
    assert read_manifest(other).fingerprint != read_manifest(corpus).fingerprint
