"""Every kind of source: each document comes out once, whole, with its place; what is lost is counted."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepare.document import Document
from data.prepare.prepare import prepare
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, expand
from data.prepare.tally import Tally
from data.prepare.units import cut_into_units

TEXTS = ["plain", "two\nlines\n", "ünï\tcödé 東京 🌱", 'quote " and , comma', "x" * 3000, " ", "last"]


def read(
    specs: list[Path | str], unit_bytes: int = 1 << 30, **recipe: object
) -> tuple[list[Document], Tally]:
    """All documents of the sources, read unit by unit, and what was counted."""
    chosen = Recipe(**recipe)  # type: ignore[arg-type]
    tally = Tally()
    units = cut_into_units(expand([str(spec) for spec in specs], chosen), unit_bytes, chosen)
    return [d for unit in units for part in unit.ranges for d in documents(part, chosen, tally)], tally


def texts_of(found: list[Document]) -> list[str]:
    return [document.text for document in found]


def json_lines(texts: list[str], **more: object) -> bytes:
    return b"".join(json.dumps({"text": text, **more}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_json_lines_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    pack[".zst"] = lambda raw: zstandard.compress(raw[:50]) + zstandard.compress(raw[50:])  # two frames
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack[suffix](json_lines(TEXTS, license="MIT", language="en")))
    found, tally = read([path])
    assert texts_of(found) == TEXTS
    assert found[1].origin == {
        "source": "a",
        "path": path.name,
        "offset": len(json_lines(TEXTS[:1], license="MIT", language="en")),
        "licence": "MIT",
        "language": "en",
    }
    assert not tally.counts


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    raw = json_lines([random.Random(0).randbytes(5000).hex()] * 20)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / f"cut.jsonl{suffix}"
    path.write_bytes(pack[suffix](raw)[:-9])
    with pytest.raises(RuntimeError, match=f"cut.jsonl{suffix} cannot be read"):
        read([path])


def test_lines_that_are_no_documents_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\nnot json\n[1]\n{"body": "x"}\n{"text": "\\ud800"}\n')
    found, tally = read([path])
    assert texts_of(found) == ["good", "�"]
    counts = {step: count[0] for step, count in tally.counts.items()}
    assert counts == {
        "removed.not_json": 1,
        "removed.not_a_json_object": 1,
        "removed.no_text_field": 1,
        "changed.not_unicode": 1,
    }
    assert "fields: body" in tally.examples["removed.no_text_field"][0]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=30),
    unit_bytes=st.integers(1, 400),
)
def test_any_cut_into_ranges_gives_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_bytes(json_lines([text.encode("utf-8", "replace").decode() for text in texts]))
    whole, _ = read([path])
    cut, _ = read([path], unit_bytes)
    assert [(d.text, d.origin) for d in cut] == [(d.text, d.origin) for d in whole]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(max_size=300), min_size=1, max_size=30),
    unit_bytes=st.integers(64, 3000),
    limit=st.integers(1, 500),
)
def test_a_text_split_by_length_comes_in_parts_that_join_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], unit_bytes: int, limit: int
) -> None:
    raw = "\n".join(lines).encode("utf-8", "replace").removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"0")
    path = tmp_path_factory.mktemp("parts") / "a.txt"
    path.write_bytes(raw)
    found, tally = read([path], unit_bytes, split_characters=limit, max_document_bytes=4096)
    parts = {document.origin["offset"]: document.text.encode() for document in found}
    rest = bytearray(raw)
    for offset, part in parts.items():
        assert raw[offset : offset + len(part)] == part
        rest[offset : offset + len(part)] = b" " * len(part)
    assert not rest.decode().strip(), "only blank parts are no documents"
    assert all(len(document.text) <= limit for document in found)
    assert not tally.counts


def test_csv_and_tsv(tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        import csv

        with open(tmp_path / f"a{suffix}", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["id", "text", "license"])
            writer.writerows([number, text, "CC0"] for number, text in enumerate(TEXTS))
        found, _ = read([tmp_path / f"a{suffix}"])
        assert texts_of(found) == TEXTS
        assert found[2].origin["row"] == 2 and found[2].origin["licence"] == "CC0"
    with pytest.raises(ValueError, match="no column 'body': give --text-field as one of id, text, license"):
        read([tmp_path / "a.csv"], text_field="body")


def test_parquet_is_cut_by_row_groups(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(1000)]
    table = pa.table({"text": texts, "language": ["de"] * 1000, "n": range(1000)})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    units = cut_into_units(expand([str(tmp_path / "a.parquet")], Recipe()), 2000, Recipe())
    assert len(units) > 3
    found, _ = read([tmp_path / "a.parquet"], 2000)
    assert texts_of(found) == texts
    assert [document.origin["row"] for document in found] == list(range(1000))
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[60:400] = bytes(340)
    (tmp_path / "bad.parquet").write_bytes(raw)
    with pytest.raises(RuntimeError, match=r"bad\.parquet cannot be read"):
        read([tmp_path / "bad.parquet"])


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    """The layout of `Dataset.save_to_disk`: Arrow's streaming format, `state.json` and
    `dataset_info.json`.
    """
    folder = tmp_path / "dataset/train"
    folder.mkdir(parents=True)
    table = pa.table({"text": TEXTS, "label": list(range(len(TEXTS)))})
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": None}))
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset/dataset_dict.json").write_text('{"splits": ["train"]}')
    found, _ = read([tmp_path / "dataset"])
    assert texts_of(found) == TEXTS
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(ValueError, match="flatten_indices"):
        read([tmp_path / "dataset"])


@settings(max_examples=40, deadline=None)
@given(
    records=st.lists(st.lists(st.text("ACGT", max_size=30), max_size=5), min_size=1, max_size=12),
    unit_bytes=st.integers(8, 300),
)
def test_fasta_records(
    tmp_path_factory: pytest.TempPathFactory, records: list[list[str]], unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("fasta") / "a.fa"
    path.write_text("".join(f">r{i} about\n" + "".join(x + "\n" for x in r) for i, r in enumerate(records)))
    found, _ = read([path], unit_bytes)
    expected = {f"r{number} about": "".join(lines) for number, lines in enumerate(records)}
    assert {d.origin["record"]: d.text for d in found if d.text} == {k: v for k, v in expected.items() if v}


def test_a_long_sequence_is_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text("stray\n>chr1\n" + ("ACGT" * 20 + "\n") * 100 + ">p2\nMKV\n")
    found, tally = read([tmp_path / "a.fasta"], max_document_bytes=1024)
    assert "".join(d.text for d in found if d.origin["record"] == "chr1") == "ACGT" * 2000
    assert found[-1].text == "MKV"
    assert tally.documents("removed.before_first_record") == 1
    assert tally.documents("changed.cut_long_document") > 3


def write_tar(path: Path, samples: list[dict]) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def test_webdataset_tars_of_text_of_ids_and_of_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "text.tar", [{"__key__": f"a/{i}", "txt": text} for i, text in enumerate(TEXTS)])
    assert texts_of(read([tmp_path / "text.tar"])[0]) == TEXTS
    write_tar(tmp_path / "ids.tar", [{"__key__": f"{i}", "npy": np.arange(i)} for i in range(4)])
    found, _ = read([tmp_path / "ids.tar"])
    assert [d.ids.tolist() for d in found if d.ids is not None] == [[], [0], [0, 1], [0, 1, 2]]
    picture = b"\xff\xd8 any bytes"
    write_tar(
        tmp_path / "pairs.tar", [{"__key__": "x", "jpg": picture, "txt": "a cat", "json": {"license": "CC0"}}]
    )
    (pair,), _ = read([tmp_path / "pairs.tar"])
    assert (pair.text, pair.media, pair.origin["licence"]) == ("a cat", {"jpg": picture}, "CC0")
    write_tar(tmp_path / "none.tar", [{"__key__": "x", "mp3": b"..."}])
    found, tally = read([tmp_path / "none.tar"])
    assert not found and tally.documents("removed.no_text_in_sample") == 1


def test_no_pickle_is_opened_and_a_damaged_tar_stops(tmp_path: Path) -> None:
    bad = io.BytesIO()
    np.save(bad, np.array([{}], dtype=object), allow_pickle=True)
    write_tar(tmp_path / "evil.tar", [{"__key__": "x", "npy": bad.getvalue()}])
    with pytest.raises(RuntimeError, match=r"evil.tar sample x: .npy cannot be read"):
        read([tmp_path / "evil.tar"])
    write_tar(tmp_path / "code.tar", [{"__key__": "x", "pyd": b"cos\nsystem\n", "txt": "text"}])
    assert texts_of(read([tmp_path / "code.tar"])[0]) == ["text"]
    write_tar(tmp_path / "good.tar", [{"__key__": f"{i}", "txt": "text"} for i in range(9)])
    raw = bytearray((tmp_path / "good.tar").read_bytes())
    raw[1024 + 5] ^= 1  # a bit of the second header, which tarfile takes for the end
    (tmp_path / "good.tar").write_bytes(raw)
    with pytest.raises(RuntimeError, match=r"good\.tar, byte 1024"):
        read([tmp_path / "good.tar"])


def test_folders_of_pictures(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.png", "dog/3.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found, _ = read([tmp_path])
    assert [(d.text, d.origin["class"], list(d.media)) for d in found] == [
        ("cat", "cat", ["jpg"]),
        ("cat", "cat", ["png"]),
        ("dog", "dog", ["jpeg"]),
    ]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("für".encode("cp1252"))
    (tmp_path / "b.txt").write_bytes("für".encode("utf-16"))
    (tmp_path / "c.bin").write_bytes(b"\x7fELF\0\xff")
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfmark")
    found, tally = read([tmp_path])
    assert texts_of(found) == ["für", "für", "mark"]
    assert {step: count[0] for step, count in tally.counts.items()} == {
        "changed.not_utf8": 1,
        "removed.binary": 1,
    }
    found, tally = read([tmp_path], undecodable="skip")
    assert texts_of(found) == ["für", "mark"]
    assert tally.examples["removed.undecodable"] == ["a.txt"]


def test_names_globs_braces_lists_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a/one.py",
        "a/two.txt",
        "a/.git/config",
        "a/__pycache__/x.pyc",
        "b/tests/three.py",
        "b/four.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "list").write_text("a\n\nb/four.py\n")
    monkeypatch.chdir(tmp_path)

    def names(*specs: str, **recipe: object) -> list[str]:
        return [file.relative for file in expand(list(specs), Recipe(**recipe))]  # type: ignore[arg-type]

    assert names("a", "b") == ["one.py", "two.txt", "four.py", "tests/three.py"]
    assert names("a", include=["*.py"]) == ["one.py"]
    assert names("b", exclude=["tests"]) == ["four.py"]
    assert names("b", exclude=["tests/*"]) == ["four.py"]
    assert names("?/*.py") == ["a/one.py", "b/four.py"]
    assert names("**/*.py") == ["a/one.py", "b/four.py", "b/tests/three.py"]
    assert names("{a/one,b/four}.py") == ["one.py", "four.py"]
    assert names("@list") == ["one.py", "two.txt", "four.py"]
    for number in range(8, 12):
        (tmp_path / f"s-{number:02}.txt").write_text("x")
    assert names("s-{08..10}.txt") == ["s-08.txt", "s-09.txt", "s-10.txt"]
    with pytest.raises(ValueError, match=r"source b/no\.py is not there"):
        names("{a/one,b/no}.py")


def test_linked_folders_are_read_once_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    for name in ("in/a.txt", "elsewhere/b.txt", "elsewhere/deeper/c.txt", "out/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for link, target in (("in/latest", "elsewhere"), ("in/one", "elsewhere"), ("elsewhere/up", "in")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/made").symlink_to(tmp_path / "out")

    def names(spec: str, **recipe: object) -> list[str]:
        return [f.relative for f in expand([spec], Recipe(**recipe), out=str(tmp_path / "out"))]  # type: ignore[arg-type]

    assert names(f"{tmp_path}/in") == ["a.txt", "latest/b.txt", "latest/deeper/c.txt"]
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nothing")
    for spec in ("in", "in/*"):
        with pytest.raises(
            ValueError, match=r"in/gone.txt is a link to nothing: restore it, or leave it out"
        ):
            names(f"{tmp_path}/{spec}")
        assert "a.txt" in names(f"{tmp_path}/{spec}", exclude=["gone.*"])


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/locked").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("x")
    scan = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("locked"):  # root may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        expand([str(tmp_path / "in")], Recipe())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """An HTTP server of a folder, on a port that the system chose."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        """Answers the first requests for a file named flaky… with an error, later ones properly; sends no
        ranges of one named whole….
        """

        failures = 3

        def log_message(self, *_: object) -> None: ...

        def end_headers(self) -> None:
            if "whole" in self.path:
                self.send_header("Accept-Ranges", "none")
            super().end_headers()

        def do_GET(self) -> None:
            if "flaky" in self.path and Quiet.failures:
                Quiet.failures -= 1
                self.send_error(503)
            else:
                super().do_GET()

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_over_http(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "served/a.jsonl.gz").write_bytes(gzip.compress(json_lines(TEXTS)))
    write_tar(tmp_path / "served/b.tar", [{"__key__": "1", "txt": "in a tar"}])
    assert texts_of(read([f"{web}/a.jsonl.gz", f"{web}/b.tar"])[0]) == [*TEXTS, "in a tar"]
    with pytest.raises(ValueError, match=r"gone.jsonl cannot be reached"):
        read([f"{web}/gone.jsonl"])


def test_a_server_that_sends_no_ranges(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    packers: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
    packers |= {".xz": lzma.compress, ".zst": zstandard.compress}
    texts = [f"{number} " + "x" * 2000 for number in range(500)]  # more than a look, packed small
    for suffix, pack in packers.items():
        (tmp_path / f"served/whole.jsonl{suffix}").write_bytes(pack(json_lines(texts)))
        assert texts_of(read([f"{web}/whole.jsonl{suffix}"])[0]) == texts


def test_a_server_that_fails_and_comes_back(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    (tmp_path / "served/flaky.jsonl").write_bytes(json_lines(TEXTS))
    out = tmp_path / "out"
    report = prepare([f"{web}/flaky.jsonl"], out, tokenizer="bytes", workers=1, progress=False)
    assert report.counts["read"][0] == len(TEXTS)
    assert pauses and pauses == [1, 5, 25][: len(pauses)]


def test_a_server_that_fails_while_work_is_planned_is_one_line(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp")
    pa.parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "served/flaky.parquet")
    with pytest.raises(RuntimeError, match=r"^\S+/flaky.parquet cannot be read: \S+: 503.*$"):
        read([f"{web}/flaky.parquet"])


def test_an_object_store_by_name_by_folder_and_by_glob() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("one", "two"):
        store.pipe(f"/bucket/{name}.jsonl", json_lines([name]))
    assert texts_of(read(["memory://bucket/two.jsonl"])[0]) == ["two"]
    assert texts_of(read(["memory://bucket"], 5)[0]) == ["one", "two"]
    assert texts_of(read(["memory://bucket/*e.jsonl"])[0]) == ["one"]
    store.pipe("/bucket/tests/three.jsonl", json_lines(["three"]))
    for name in ("bucket", "bucket/**/*.jsonl"):
        assert texts_of(read([f"memory://{name}"], exclude=["tests"])[0]) == ["one", "two"]
        assert texts_of(read([f"memory://{name}"], include=["tests/*"])[0]) == ["three"]
    assert texts_of(read(["memory://bucket/tests/three.jsonl"])[0]) == ["three"]


def test_files_side_by_side_and_cut(tmp_path: Path) -> None:
    files = []
    for n, size in enumerate([10, 10, 95, 250, 10]):
        (tmp_path / f"{n}").write_bytes(bytes(size))
        files.append(InputFile("s", str(tmp_path / f"{n}"), f"{n}", "jsonl", size))
    units = cut_into_units(files, 100, Recipe())
    assert [[(p.file.relative, p.start, p.end) for p in unit.ranges] for unit in units] == [
        [("0", 0, 10), ("1", 0, 10)],
        [("2", 0, 95)],
        [("3", 0, 100)],
        [("3", 100, 200)],
        [("3", 200, 250), ("4", 0, 10)],
    ]
