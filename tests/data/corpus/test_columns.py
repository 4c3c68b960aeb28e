"""Pictures and labels in a corpus: what the index says of them, and that other corpora are as they were."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from common.mapped_file import map_file
from data.corpus import columns
from data.corpus.columns import CLASS, Columns, in_order, recast
from data.corpus.index import read_index
from data.corpus.manifest import INDEX_ROWS, MANIFEST, VERSION_WITH_COLUMNS, read_manifest
from data.corpus.scan import index_shard, token_index
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.verify.verify import verify
from made_corpus import make_corpus, numbered_documents
from pictures import write_folders

pytestmark = pytest.mark.usefixtures("no_pictures")
CLASSES = ("cat", "dog", "yak")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Pictures of three classes, one of which is held out alone, in shards of a few pictures."""
    written = write_folders(tmp_path / "in", CLASSES, 6)
    recipe = Recipe(shard_bytes=2048, heldout_match=["dog"])
    out = tmp_path / "corpus"
    prepare([str(tmp_path / "in")], out, tokenizer="bytes", recipe=recipe, workers=1, progress=False)
    (out / "written.json").write_text(json.dumps(sorted(written)))
    return out


def indexes(folder: Path) -> list[tuple[Path, np.ndarray]]:
    manifest = read_manifest(folder)
    return [
        (folder / entry.file, read_index(folder / entry.index_file, entry, manifest.index_rows))
        for entry in manifest.shards
    ]


def test_a_corpus_without_pictures_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", numbered_documents([3, 0, 5, 7]), shard_documents=2)
    manifest = hashlib.sha256((corpus / MANIFEST).read_bytes()).hexdigest()
    assert manifest == "76730ee2bf8708f98f12bbfb66fdbf826001f2397cf8dd4e38b393ad69f109f4"
    index = hashlib.sha256((corpus / "shard-000000.idx.npy").read_bytes()).hexdigest()
    assert index == "ab2664768c5db056f1c473c6f983ef274ac5d455f298b02d8d48b448dd5c6cb9"


def test_the_index_says_where_each_picture_is_and_its_class(corpus: Path, tmp_path: Path) -> None:
    found, labels = set(), []
    for side in ("train", "heldout"):
        manifest = read_manifest(corpus / side)
        # Classes of both sides: a label means the same on each.
        assert (manifest.classes, manifest.media) == (CLASSES, ("jpg", "png"))
        assert manifest.version == VERSION_WITH_COLUMNS and len(manifest.shards) > 1
        rows = [manifest.row(name) for name in ("media_offset", "media_bytes", "media_crc", "label")]
        for path, index in indexes(corpus / side):
            raw = path.read_bytes()
            samples = webdataset.WebDataset(str(path), shardshuffle=False)
            for (at, size, crc, label), sample in zip(index[rows].T.tolist(), samples, strict=True):
                picture = raw[at : at + size]
                assert picture == sample.get("jpg", sample.get("png")) and crc == zlib.crc32(picture)
                about = json.loads(sample["json"])
                assert about["class"] == CLASSES[label]
                assert picture == (tmp_path / "in" / about["path"]).read_bytes()
                found.add(about["path"])
                labels.append((side, label))
    assert sorted(found) == json.loads((corpus / "written.json").read_text())
    assert set(labels) == {("train", 0), ("heldout", 1), ("train", 2)}


def test_a_scan_makes_the_same_index(corpus: Path) -> None:
    manifest = read_manifest(corpus / "train")
    given = {"dtype": manifest.dtype, "vocab": manifest.tokenizer.vocab, "further": manifest.further}
    for path, index in indexes(corpus / "train"):
        scanned, _ = token_index(map_file(path), "x", **given)
        np.testing.assert_array_equal(scanned, index)
        assert index_shard(path, **given) in manifest.shards
    other = Columns(manifest.columns, ("cat", "dog"), manifest.media)
    with pytest.raises(RuntimeError, match=r"byte \d+: sample '\S+' is of class 'yak', which is not listed"):
        token_index(map_file(path), "x", **{**given, "further": other})


def test_a_damaged_picture_is_named_by_shard_sample_and_byte(corpus: Path) -> None:
    assert verify(corpus) == []
    path, index = indexes(corpus / "train")[1]
    raw = bytearray(path.read_bytes())
    at, size = index[INDEX_ROWS : INDEX_ROWS + 2, 0].tolist()
    raw[at + size // 2] ^= 1
    path.write_bytes(raw)
    whole, picture = verify(corpus)
    assert "SHA-256" in whole.problem
    key = bytes(raw[at - 512 : at - 412]).split(b".")[0].decode()
    assert (picture.file, picture.sample, picture.offset) == (str(path), key, at)
    assert picture.problem == "its picture is damaged"
    raw[at - 512] ^= 1  # the tar's header as well: the shard cannot be scanned any more
    path.write_bytes(raw)
    _, scan, picture = verify(corpus)
    assert "checksum differs" in scan.problem
    assert (picture.sample, picture.offset) == ("document 0 of the shard", at)


def test_manifests_whose_columns_do_not_fit_are_refused(corpus: Path) -> None:
    document = json.loads((corpus / "train" / MANIFEST).read_text())
    del document["sha256"]
    for change, reason in (
        ({"columns": ["label", "depth"]}, "columns are"),
        ({"classes": ["cat", "cat"]}, "a class is listed twice"),
        ({"classes": []}, "it has 0 classes"),
        ({"columns": ["label"]}, "it has media"),
        ({"classes": ["a", "b", "c"]}, "its fingerprint does not match"),
        ({"version": 3}, "has format version 3, this program reads 1 and 2"),
    ):
        (corpus / "train" / MANIFEST).write_text(json.dumps(document | change))
        with pytest.raises((RuntimeError, ValueError), match=reason):
            read_manifest(corpus / "train")


def test_classes_are_in_the_order_of_their_numbers_or_of_their_names() -> None:
    assert in_order({"b": -1, "a": -1}) == ("a", "b")
    assert in_order({"b": 0, "a": 1}) == ("b", "a")
    assert in_order({"b": 0, "a": -1}) == ("a", "b")
    assert in_order({"b": 3, "a": 3}) == ("a", "b")
    assert in_order({"3": 3, "1": 1}) == ("0", "1", "2", "3")
    assert in_order({"1": 3, "b": 0}) == ("b", "1")
    assert in_order({"9000000": 9_000_000, "7": 7}) == ("7", "9000000")
    assert in_order({}) == ()


def test_an_index_gets_the_columns_of_its_corpus() -> None:
    index = np.array([[1, 2], [0, columns.NO_LABEL]], dtype=np.uint64)
    old = Columns(("label",), ("yak",))
    new = Columns(("media_offset", "media_bytes", "media_crc", "label"), ("cat", "yak"), ("png",))
    cast = recast(index, old, new, 1).astype(np.int64)
    assert cast.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [1, -1]]


def test_a_shard_without_labels_becomes_part_of_a_corpus_with_them(tmp_path: Path) -> None:
    """Units are written apart: only the end knows every column and every class."""
    write_folders(tmp_path / "in", ("cat",), 2)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("a text " * 200_000)
    sources = [str(tmp_path / "text"), str(tmp_path / "in")]
    prepare(sources, tmp_path / "out", tokenizer="bytes", workers=1, progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert verify(tmp_path / "out") == [] and len(manifest.shards) == 2
    label = manifest.row("label")
    assert [index[label].astype(np.int64).tolist() for _, index in indexes(tmp_path / "out")] == [
        [-1],
        [0, 0],
    ]


def test_the_fingerprint_is_of_the_classes_too(corpus: Path) -> None:
    manifest = read_manifest(corpus / "train")
    other = replace(manifest, classes=("cat", "dog", "cow"))
    assert other.fingerprint != manifest.fingerprint
    assert CLASS == "class"  # the key that readers of the shards see
