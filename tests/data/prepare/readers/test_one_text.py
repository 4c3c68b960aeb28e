"""A text file is one document, or what the user says; the end of one is held out."""

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.prepare.tally import Tally
from data.prepare.units import cut_into_units
from prepared import made, rows, texts_in

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_file_of_five_megabytes_is_one_document(tmp_path: Path) -> None:
    text = "".join(f"line {number} of a book\n" for number in range(260_000))
    assert len(text) > 5 << 20
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text(text)
    (tmp_path / "in/b.txt.gz").write_bytes(gzip.compress(text.encode(), 1))
    recipe = Recipe()
    units = cut_into_units(expand([str(tmp_path / "in")], recipe), 1 << 20, recipe)
    found = [d.text for unit in units for part in unit.ranges for d in documents(part, recipe, Tally())]
    assert found == [text, text]


def test_a_corpus_of_a_text_of_more_than_a_unit_has_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line after another\n" * 50_000)
    report = made(tmp_path / "a.txt", "bytes", tmp_path / "out")
    assert (report.train.documents, report.train.text_bytes) == (1, 23 * 50_000)


@pytest.mark.parametrize(
    ("split", "texts"),
    [
        ({"split_lines": True}, ["one", "two ü", "<s>three", "four"]),
        ({"split_at": "<s>"}, ["one\r\ntwo ü\n\n", "three\nfour"]),
        ({"split_at": r"\n\n"}, ["one\r\ntwo ü", "<s>three\nfour"]),
        ({"split_characters": 8}, ["one\r\n", "two ü\n\n", "<s>three", "\nfour"]),
    ],
)
def test_a_file_is_split_as_asked_whatever_its_name_and_however_it_is_cut(
    tmp_path: Path, split: dict, texts: list[str]
) -> None:
    raw = "one\r\ntwo ü\n\n<s>three\nfour".encode()
    recipe = Recipe(**split)
    for name in ("a.txt", "a.md", "a.py", "a.txt.gz", "a.txt.zst"):
        pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(raw))
        for unit_bytes in range(1, len(raw) + 1, 3):
            units = cut_into_units(expand([str(tmp_path / name)], recipe), unit_bytes, recipe)
            pieces = [part for unit in units for part in unit.ranges]
            assert [d.text for part in pieces for d in documents(part, recipe, Tally())] == texts


def test_an_end_of_a_line_in_the_separator_is_either_kind(tmp_path: Path) -> None:
    raw = b"one\r\ntwo\r\n\r\nthree\r\n\nfour--\r\n5--\nsix\r\n--"
    (tmp_path / "a.txt").write_bytes(raw)
    for separator, texts in (
        (r"\n\n", ["one\r\ntwo", "three", "four--\r\n5--\nsix\r\n--"]),
        (r"--\n", ["one\r\ntwo\r\n\r\nthree\r\n\nfour", "5", "six\r\n--"]),
        (r"\r\n", ["one", "two", "three", "\nfour--", "5--\nsix", "--"]),
    ):
        recipe = Recipe(split_at=separator)
        for unit_bytes in range(1, len(raw) + 1):
            units = cut_into_units(expand([str(tmp_path / "a.txt")], recipe), unit_bytes, recipe)
            pieces = [part for unit in units for part in unit.ranges]
            assert [d.text for part in pieces for d in documents(part, recipe, Tally())] == texts


MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "raw", "recipe"),
    [
        ("a.txt", b"word " * (16 * MIB // 5), {"split_at": "<s>"}),
        ("a.txt", b"word " * (16 * MIB // 5), {"split_lines": True}),
        ("a.jsonl", b'{"text": "' + b"word " * (16 * MIB // 5) + b'"}', {}),
        ("a.fasta", b">r\n" + (b"ACGT" * 15 + b"\n") * (16 * MIB // 61), {}),
        ("a.fasta", b">r\n" + b"ACGT" * (4 * MIB), {}),
    ],
    ids=["no-separator", "one-line", "one-row", "one-record", "one-record-one-line"],
)
def test_what_is_longer_than_a_piece_is_not_read_to_its_end_for_each_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, raw: bytes, recipe: dict
) -> None:
    (tmp_path / name).write_bytes(raw)
    taken = 0

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal taken
            taken += (size := super().readinto(buffer))
            return size

    monkeypatch.setattr("data.opening.open", lambda path, _: io.BufferedReader(Counted(path)), raising=False)
    chosen = Recipe(max_document_bytes=4 * MIB, **recipe)
    found = []
    for unit_bytes in (16 * MIB + 99, MIB):
        units, tally, taken = (
            cut_into_units(expand([str(tmp_path / name)], chosen), unit_bytes, chosen),
            Tally(),
            0,
        )
        pieces = [part for unit in units for part in unit.ranges]
        found.append(
            (
                [len(d.text) for part in pieces for d in documents(part, chosen, tally)],
                tally.counts,
            )
        )
    assert found[0] == found[1] and len(pieces) == 17 - (len(raw) <= 16 * MIB)
    assert len(raw) <= taken < 4 * len(raw)


def test_a_separator_that_never_occurs_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("one\n<s>\ntwo\n")
    (tmp_path / "in/b.txt").write_text("one\n<p>\ntwo\n" * 1000)
    for unit_bytes in (100, 1 << 20):
        recipe, tally = Recipe(split_at="<s>"), Tally()
        units = cut_into_units(expand([str(tmp_path / "in")], recipe), unit_bytes, recipe)
        found = [d.text for unit in units for part in unit.ranges for d in documents(part, recipe, tally)]
        assert len(found) == 3
        assert tally.examples == {"noted.no_separator": ["b.txt"]}


def test_standard_input_is_read_as_the_format_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (raw, recipe, texts) in enumerate(
        [
            (b"{a book}\nof two lines\n", {"format": "text"}, ["{a book}\nof two lines\n"]),
            (b"one\ntwo\n", {"format": "text", "split_lines": True}, ["one", "two"]),
            (b'[{"text": "an array"}]', {}, ["an array"]),
            (b"text;n\nx;1\n", {"format": "csv"}, ["x"]),
        ]
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        made("-", "bytes", tmp_path / f"{number}", **recipe)
        assert [text for _, text in texts_in(tmp_path / f"{number}")] == texts


def test_the_end_of_one_large_file_is_held_out(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "book.txt").write_text(text)
    report = made(tmp_path / "book.txt", "bytes", tmp_path / "out", heldout=0.02)
    ((_, before),), ((_, after),) = texts_in(tmp_path / "out/train"), texts_in(tmp_path / "out/heldout")
    assert before + after == text and before.endswith("\n") and abs(len(after) / len(text) - 0.02) < 0.002
    assert report.heldout_by == "position"
    (tmp_path / "rows.jsonl").write_bytes(rows(*(f"row {number:04}" for number in range(1000))))
    made(tmp_path / "rows.jsonl", "bytes", tmp_path / "rows", heldout=0.1, heldout_by="position")
    assert [text for _, text in texts_in(tmp_path / "rows/heldout")] == [
        f"row {n:04}" for n in range(900, 1000)
    ]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows("x")))
    with pytest.raises(ValueError, match=r"needs the length of .*gz unpacked"):
        made(tmp_path / "rows.jsonl.gz", "bytes", tmp_path / "gz", heldout=0.1, heldout_by="position")
