"""Every kind of source: each document comes out once, whole, with its place; what is lost is counted."""

import bz2
import gzip
import io
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.prepare.units import cut_into_units
from read_sources import TEXTS, json_lines, read, texts_of, write_tar


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
    names = ("cat/1.jpg", "cat/2.png", "dog/3.jpeg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    found, _ = read([tmp_path])
    assert [(d.text, d.origin["class"], list(d.media.values())) for d in found] == [
        ("", name.split("/")[0], [(tmp_path / name).read_bytes()]) for name in names
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
