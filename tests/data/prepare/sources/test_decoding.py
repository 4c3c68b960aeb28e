"""Files that are not UTF-8, or are so for the most part: every kind of file reads the same letters of them,
and what cannot be read is counted, and told.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset

from data.prepare.cleaning.decontaminate import write_evaluation_runs
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from data.prepare.tally import Tally
from data.prepare.units import cut_into_units
from launch import cli
from prepared import by_webdataset, made, rows, texts_in

# 表 ends in the byte of a backslash in Shift-JIS, ー in that of a bracket: neither is one in the text.
TEXTS = ["café à Paris, „naïve“", "plain", 'a "quoted" ß']
JAPANESE = ["表にコーヒー", "plain", 'ソ "表"']

KINDS: dict[str, Callable[[list[str]], str]] = {
    "a.jsonl": lambda texts: "".join(
        json.dumps({"é": 1, "text": t}, ensure_ascii=False) + "\n" for t in texts
    ),
    "a.json": lambda texts: json.dumps([{"text": t} for t in texts], ensure_ascii=False, indent=1),
    "b.json": lambda texts: json.dumps(texts, ensure_ascii=False),
    "a.csv": lambda texts: "né;text\r\n" + "".join('1;"' + t.replace('"', '""') + '"\r\n' for t in texts),
    "a.tsv": lambda texts: "text\n" + "".join('"' + t.replace('"', '""') + '"\n' for t in texts),
    "a.txt": lambda texts: "<s>".join(texts),
    "a.fasta": lambda texts: "".join(f">r{n}\n{t}\n" for n, t in enumerate(texts)),
}


def read(path: Path, unit_bytes: int = 1 << 30, **recipe: object) -> tuple[list[str], dict[str, int]]:
    """The texts of a file that is read in pieces of `unit_bytes`, and what was counted."""
    chosen = Recipe(split_at="<s>", **recipe)  # type: ignore[arg-type]
    tally = Tally()
    units = cut_into_units(expand([str(path)], chosen), unit_bytes, chosen)
    found = [d.text for unit in units for part in unit.ranges for d in documents(part, chosen, tally)]
    return found, {step: count[0] for step, count in tally.counts.items()}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_read_by_the_encoding_that_is_named_or_marked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for texts, encoding, named in (
        (TEXTS, "windows-1252", "cp1252"),
        (TEXTS, "utf-16", "utf-8"),  # it has a mark
        (TEXTS, "utf-8-sig", "cp1252"),
        (TEXTS, "utf-16-be", "utf-16-be"),
        (TEXTS, "utf-16-le", "utf-16"),  # it has none
        (JAPANESE, "shift_jis", "shift_jis"),
    ):
        raw = KINDS[name](texts).encode(encoding, "replace")
        expected = texts if encoding != "shift_jis" else [t.encode(encoding).decode(encoding) for t in texts]
        path.write_bytes(raw)
        for unit_bytes in (1 << 30, 40):
            assert read(path, unit_bytes, encoding=named) == (expected, {}), (encoding, unit_bytes)
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(raw))
        assert read(packed, encoding=named) == (expected, {})
        packed.unlink()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_utf8_is_read_or_left_out_alike_and_counted(tmp_path: Path, name: str) -> None:
    """One row in Windows-1252, one in UTF-8 with a byte that is not, one with a byte that no letter has."""
    rows = ["plain", "CAFE", "BROKEN", "NOTHING"]
    raw = KINDS[name](rows).replace("é", "e").encode()
    raw = raw.replace(b"CAFE", "café".encode("cp1252")).replace(b"BROKEN", "東京 ünï".encode() + b"\xff")
    (tmp_path / name).write_bytes(raw.replace(b"NOTHING", b"\x81\x8d"))
    found, counts = read(tmp_path / name)
    assert found == ["plain", "café", "東京 ünï�"]
    assert counts == {"changed.not_utf8": 1, "changed.broken_utf8": 1, "removed.undecodable": 1}
    assert read(tmp_path / name, undecodable="skip") == (["plain"], {"removed.undecodable": 3})


def test_letters_that_were_lost_before_are_letters(tmp_path: Path) -> None:
    """U+FFFD in a text is no sign that the text is in another encoding."""
    text = "one � two � three � four �"
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\xff")
    assert read(tmp_path / "a.txt")[0] == [text + "�"]


def test_utf16_without_a_mark_is_told_from_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a<s>b".encode("utf-16-le"))
    (tmp_path / "b.txt").write_bytes(b"\0\0\1\2\0\0\0\0")
    assert read(tmp_path / "a.txt") == ([], {"removed.utf16_without_mark": 1})
    assert read(tmp_path / "b.txt") == ([], {"removed.binary": 1})


def test_what_is_not_in_the_named_encoding_is_left_out_and_counted(tmp_path: Path) -> None:
    raw = KINDS["a.jsonl"](["表", "AT FAULT"]).replace("é", "e").encode("shift_jis")
    (tmp_path / "a.jsonl").write_bytes(raw.replace(b"AT FAULT", b"\x80\xff"))
    assert read(tmp_path / "a.jsonl", encoding="shift_jis") == (["表"], {"removed.undecodable": 1})
    (tmp_path / "half.txt").write_bytes(b"+2AA-")
    with pytest.raises(ValueError, match=r"no document is left of 0 that were read \(not in the encoding"):
        made(tmp_path / "half.txt", "bytes", tmp_path / "out", encoding="utf-7")
    (tmp_path / "a.txt").write_bytes(b"\x80\xff")
    made_of, counts = read(tmp_path / "a.txt", encoding="shift_jis")
    assert (made_of, counts) == ([], {"removed.undecodable": 1, "noted.no_separator": 1})


def test_a_header_is_no_document_that_was_changed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("né,text\n1,café\n2,für\n3,plain\n".encode("latin-1"))
    report = made(tmp_path / "a.csv", "bytes", tmp_path / "out")
    assert report.counts["changed.not_utf8"][0] == 2
    assert report.examples["changed.not_utf8"][0].startswith("a.csv, row 0")


def test_texts_in_tables_and_tars_that_are_not_utf8(tmp_path: Path) -> None:
    raw = "café".encode("cp1252")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(raw)])
    pa.parquet.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    pa.parquet.write_table(pa.table({"text": [raw, "für".encode()]}), tmp_path / "bytes.parquet")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "a", "json": b'{"text": "' + raw + b'"}'})
        tar.write({"__key__": "b", "jpg": b"\xff\xd8\xff", "cls": raw})
    found = {name: read(tmp_path / name) for name in ("a.parquet", "bytes.parquet", "a.tar")}
    assert found == {
        "a.parquet": (["café"], {"changed.not_utf8": 1}),
        "bytes.parquet": (["café", "für"], {"changed.not_utf8": 1}),
        "a.tar": (["café", ""], {"changed.not_utf8": 2, "noted.no_caption": 1}),  # .cls is a class, no text
    }


def test_the_terminal_says_that_letters_were_guessed_and_how_to_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.csv").write_bytes("n;text\n1;café\n2;\x81\n".encode("latin-1"))
    arguments = ["prepare", str(tmp_path / "a.csv"), "--tokenizer", "bytes", "--workers", "1", "--out"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        "1 documents are not UTF-8 and were read as Windows-1252 (a.csv, row 0, ends in line 2): name their "
        "encoding with --encoding, or leave them out with --undecodable skip"
    ) in said
    assert (
        "1 documents were left out, for they are not valid in the encoding they were read with (a.csv, row "
        "1, ends in line 3): name their encoding with --encoding"
    ) in said
    assert cli.main([*arguments, str(tmp_path / "named"), "--encoding", "latin-1"]) == 0
    assert "encoding" not in capsys.readouterr().out
    assert [text for _, text in texts_in(tmp_path / "named")] == ["café", "\x81"]


@pytest.mark.parametrize("encoding", ["windows-9999", "base64", "", "a\0", "punycode"])
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"^--encoding '.*' is no encoding of text: utf-8, windows-1252"):
        made(tmp_path / "a.txt", "bytes", tmp_path / "out", encoding=encoding)


def test_a_header_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\x81;text\n1;x\n")
    with pytest.raises(ValueError, match=r"a.csv: its header is not in the encoding utf-8: name the file's"):
        read(tmp_path / "a.csv")


def test_a_list_of_sources_may_name_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/caf\xe9.txt"
    with open(name, "w") as file:
        file.write("x")
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + name + b"\r\n")
    assert [file.relative for file in expand([f"@{tmp_path}/list"], Recipe())] == ["caf�.txt"]


def test_names_that_are_not_utf8_are_kept_as_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9/l=\xe9")
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"\xe9.jsonl")).write_bytes(rows("x"))
    made(folder.parent, "bytes", tmp_path / "out", language_field="l")
    ((_, about),) = by_webdataset(tmp_path / "out").values()
    assert (about["source"], about["path"], about["language"]) == ("caf�", "l=�/�.jsonl", "�")
    assert "caf�" in (tmp_path / "out/datacard.md").read_text()
    assert made(folder.parent, "bytes", tmp_path / "out", language_field="l").was_complete


def test_evaluation_texts_are_decoded_as_documents_are(tmp_path: Path) -> None:
    words = " ".join(f"wört{letter}" for letter in "abcdefghijklmnop")
    written = []
    for name, raw in (("a.txt", words.encode()), ("b.txt", words.encode("cp1252"))):
        (tmp_path / name).write_bytes(raw)
        write_evaluation_runs(Recipe(decontaminate=[str(tmp_path / name)]), tmp_path / f"{name}.npy")
        written.append((tmp_path / f"{name}.npy").read_bytes())
    assert written[0] == written[1]
    pa.parquet.write_table(pa.table({"text": [words]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"--decontaminate .*a.parquet is no text: give text, JSON or lines"):
        write_evaluation_runs(Recipe(decontaminate=[str(tmp_path / "a.parquet")]), tmp_path / "no.npy")
