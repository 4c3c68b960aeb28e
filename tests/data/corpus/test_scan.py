"""The tar scanner: reads what WebDataset writes, refuses what WebDataset would read wrongly."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from common.mapped_file import map_file
from data.corpus.scan import index_shard
from data.corpus.tar import samples

Entry = tuple[str, bytes]


def write_tar(path: Path, entries: list[Entry], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, payload in entries:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def npy(ids: object, dtype: str = "<u2") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(ids, dtype=dtype), allow_pickle=True)
    return buffer.getvalue()


def scan(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    view = map_file(path)
    return [
        (sample.key, {e: bytes(view[m.offset : m.offset + m.size]) for e, m in sample.members.items()})
        for sample in samples(view, str(path))
    ]


@pytest.mark.parametrize("mtime", [None, 0])  # None: a float, which makes WebDataset write pax headers
def test_reads_what_shard_writer_alone_wrote_sample_for_sample(tmp_path: Path, mtime: float | None) -> None:
    rng = random.Random(0)
    pattern = str(tmp_path / "s-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=13, mtime=mtime, verbose=0) as writer:
        for i in range(40):
            key = f"folder/{'long' * (30 if i % 7 == 0 else 1)}/é{i:05d}"
            text = "x" * rng.randrange(2000)
            writer.write({"__key__": key, "txt": text, "json": {"n": i}, "ids.npy": np.arange(i)})
    shards = sorted(tmp_path.glob("*.tar"))
    assert len(shards) == 4
    ours = [sample for path in shards for sample in scan(path)]
    theirs = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    for (key, members), sample in zip(ours, theirs, strict=True):
        assert key == sample["__key__"]
        assert members == {k: v for k, v in sample.items() if not k.startswith("__")}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_every_tar_format_with_folders_and_long_names(tmp_path: Path, form: int) -> None:
    entries = [(f"{'d' * 60}/{'e' * 60}/doc{i}.txt", b"a" * i) for i in range(5)]
    path = write_tar(tmp_path / "a.tar", entries, form)
    with tarfile.open(path, "a", format=form) as tar:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [key for key, _ in scan(path)] == [name.removesuffix(".txt") for name, _ in entries]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("../a.txt", b"")], "not a plain relative path"),
        ([("a/../../b.txt", b"")], "not a plain relative path"),
        ([("/etc/a.txt", b"")], "not a plain relative path"),
        ([("a", b"")], "no key or no extension"),
        ([("a.", b"")], "no key or no extension"),
        ([("dir.d/.hidden", b"")], "no key or no extension"),
        ([("a.txt", b""), ("a.txt", b"")], "has .txt twice"),
        ([("a.txt", b""), ("b.txt", b""), ("a.json", b"")], "comes a second time"),
        ([("doc.1.json", b""), ("doc.2.json", b"")], "up to the first dot"),
    ],
)
def test_refuses_names_that_would_vanish_merge_or_escape(
    tmp_path: Path, entries: list[Entry], reason: str
) -> None:
    path = write_tar(tmp_path / "bad.tar", entries)
    with pytest.raises(RuntimeError, match=rf"^\S*bad\.tar, byte \d+: [^\n]*{reason}[^\n]*$"):
        scan(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_refuses_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(RuntimeError, match="not a file"):
        scan(tmp_path / "bad.tar")


def test_refuses_a_compressed_tar(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", [("a.txt", b"x")]).read_bytes()
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain))
    with pytest.raises(ValueError, match="compressed with gzip"):
        scan(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[: len(raw) // 2 // 512 * 512], "cut short"),
        (lambda raw: raw[: len(raw) // 2 + 3], "not whole tar blocks"),
        (lambda raw: raw[:1024], "cut short"),  # at a header
        (lambda raw: b"", "cut short"),
        (lambda raw: raw[:-1024] + b"x" * 1024, "data after the zero block"),
        (lambda raw: raw + bytes(9728) + b"trailing".ljust(512), "was its tail zeroed"),
        (
            lambda raw: raw[: len(raw) // 2 // 512 * 512] + bytes(len(raw) - len(raw) // 2 // 512 * 512),
            "zeroed",
        ),
        (lambda raw: raw[:5] + bytes([raw[5] ^ 1]) + raw[6:], "checksum differs"),
    ],
)
def test_refuses_damage(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    raw = write_tar(tmp_path / "a.tar", [(f"doc{i}.txt", b"text " * 200) for i in range(40)]).read_bytes()
    (tmp_path / "b.tar").write_bytes(damage(raw))
    with pytest.raises(RuntimeError, match=reason):
        scan(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"npy": npy([1, 2])}, "a document is .npy and .json"),
        ({"npy": npy([1], "<u4"), "json": b'{"text_bytes": 1}'}, "ids of uint32, the corpus uint16"),
        ({"npy": npy([1], "<i8"), "json": b'{"text_bytes": 1}'}, "not a 1-D array"),
        ({"npy": npy([[1]]), "json": b'{"text_bytes": 1}'}, "not a 1-D array"),
        ({"npy": npy([{}], "O"), "json": b'{"text_bytes": 1}'}, "not a 1-D array"),
        ({"npy": npy([1, 2])[:-2], "json": b'{"text_bytes": 1}'}, "its size says otherwise"),
        ({"npy": npy([100]), "json": b'{"text_bytes": 1}'}, "holds id 100, the vocabulary has 100"),
        ({"npy": npy([1]), "json": b"{}"}, "no object with text_bytes"),
        ({"npy": npy([1]), "json": b'{"text_bytes": "1"}'}, "no object with text_bytes"),
        ({"npy": npy([1]), "json": b"\xff"}, "no object with text_bytes"),
    ],
)
def test_refuses_documents_that_are_none(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    good = [("a.json", json.dumps({"text_bytes": 3}).encode()), ("a.npy", npy([1, 2, 3]))]
    index_shard(write_tar(tmp_path / "good.tar", good), dtype="uint16", vocab=100)
    path = write_tar(tmp_path / "bad.tar", good + [(f"b.{e}", payload) for e, payload in members.items()])
    with pytest.raises(RuntimeError, match=rf"^\S*bad\.tar, byte \d+: sample 'b'[^\n]*{reason}[^\n]*$"):
        index_shard(path, dtype="uint16", vocab=100)
