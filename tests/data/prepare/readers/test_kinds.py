"""Files as other libraries write them, and files that are not what they are called: each document once, and
nothing in silence.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from data.prepare.prepare import prepare
from data.tokenizer import training
from prepared import by_webdataset, made, rows, texts_in

pytestmark = pytest.mark.usefixtures("no_pictures")

# Brought along by the extra `dev`, for what these libraries' users have on disk.
datasets = pytest.importorskip("datasets")
pandas = pytest.importorskip("pandas")

EOS = 256
FRAMES = ("semicolon.csv", "comma.csv", "tabs.csv", "excel.tsv", "pandas.parquet")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer that made the ids: 256 bytes, and 256 for the end of a document."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = training.utf8_bytes().decoder
    made.add_special_tokens([training.SEPARATOR])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def ids_of(*documents: str, dtype: str, tokenizer: Path) -> np.ndarray:
    encode = Tokenizer.from_file(str(tokenizer)).encode
    return np.array([i for text in documents for i in [*encode(text).ids, EOS]], dtype=dtype)


def write_kinds(at: Path, tokenizer: Path) -> dict[str, list[str]]:
    """25 files and folders of files, by the libraries that people write them with: path → its documents."""
    bom, encode = b"\xef\xbb\xbf", Tokenizer.from_file(str(tokenizer)).encode
    (at / "bom.jsonl").write_bytes(bom + rows("first", "second"))
    (at / "joined.jsonl").write_bytes(bom + rows("a") + bom + rows("b"))
    (at / "array.json").write_text(
        json.dumps([{"text": 'x, "y"\n]'}, {"text": "[{"}, {"text": "ü"}], indent=1)
    )
    (at / "strings.json").write_text(json.dumps(["one string", "another"]))
    (at / "called.jsonl").write_text(json.dumps([{"text": "an array after all"}]))
    datasets.Dataset.from_dict({"text": ["hf one", "hf two"]}).to_json(str(at / "lines.json"))
    (at / "settings.json").write_text('{\n "lr": 1\n}\n')
    ids_of("nano one", "nano two", "three", dtype="uint16", tokenizer=tokenizer).tofile(at / "nano.bin")
    ids_of("wide", "ids", dtype="uint32", tokenizer=tokenizer).tofile(at / "wide.bin")
    np.save(at / "ids.npy", ids_of("numpy's", "own", dtype="int64", tokenizer=tokenizer))
    saved = datasets.Dataset.from_dict(
        {"input_ids": [[*encode(t).ids, EOS] for t in ("tokenised", "before")]}
    )
    saved.save_to_disk(str(at / "saved_ids"))
    datasets.Dataset.from_dict({"text": ["kept a", "kept b"]}).save_to_disk(str(at / "saved_text"))
    loaded = datasets.load_from_disk(str(at / "saved_text"))
    loaded.map(lambda row: {"text": row["text"] + "!"})  # leaves its cache beside the files
    frame = pandas.DataFrame({"n": [1, 2], "text": ["semi; colon", 'new\nline "q"']})
    frame.to_csv(at / "semicolon.csv", sep=";", index=False)
    frame.to_csv(at / "comma.csv", index=False)
    frame.to_csv(at / "tabs.csv", sep="\t", index=False)
    frame.to_csv(at / "excel.tsv", sep="\t", index=False, encoding="utf-16")
    frame.to_parquet(at / "pandas.parquet")
    by_language = pandas.DataFrame({"text": ["yes", "ja"], "lang": ["en", "de"]})
    by_language.to_parquet(at / "hive", partition_cols=["lang"])
    table = pa.table({"text": ["arrow's own"]})
    with pa.ipc.new_file(str(at / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    (at / "utf16.txt").write_bytes("sixteen ü".encode("utf-16"))
    (at / "bom.txt").write_bytes(bom + b"marked")
    (at / "unmarked.txt").write_bytes("no mark at all".encode("utf-16-le"))
    (at / "paper.txt").write_bytes(b"%PDF-1.7\nnot text\n")
    (at / "program.bin").write_bytes(b"\x7fELF" + bytes(range(256)))
    (at / "deep.jsonl").write_bytes(rows("before") + b'{"text": ' + b"[" * 100_000 + b"\n" + rows("after"))
    (at / "broken.jsonl").write_bytes(rows("good") + b'{"text": "cut\n{"body": "no"}\n' + rows("more"))
    (at / "packed.jsonl.zst").write_bytes(zstandard.compress(rows("packed")))
    (at / "wide.csv").write_text("text,n\nfine,1\nhello, world,2\n")
    documents = {
        "bom.jsonl": ["first", "second"],
        "joined.jsonl": ["a", "b"],
        "array.json": ['x, "y"\n]', "[{", "ü"],
        "strings.json": ["one string", "another"],
        "called.jsonl": ["an array after all"],
        "lines.json": ["hf one", "hf two"],
        "settings.json": ['{\n "lr": 1\n}\n'],
        "nano.bin": ["nano one", "nano two", "three"],
        "wide.bin": ["wide", "ids"],
        "ids.npy": ["numpy's", "own"],
        "saved_ids/data-00000-of-00001.arrow": ["tokenised", "before"],
        "saved_text/data-00000-of-00001.arrow": ["kept a", "kept b"],
        **{name: list(frame["text"]) for name in FRAMES},
        "file.arrow": ["arrow's own"],
        "utf16.txt": ["sixteen ü"],
        "bom.txt": ["marked"],
        "deep.jsonl": ["before", "after"],
        "broken.jsonl": ["good", "more"],
        "packed.jsonl.zst": ["packed"],
        "wide.csv": ["fine"],
    }
    for path in (at / "hive").rglob("*.parquet"):
        documents[str(path.relative_to(at))] = ["yes" if "lang=en" in str(path) else "ja"]
    return documents


def test_a_folder_of_every_kind_is_counted_exactly_and_nothing_is_silent(
    tmp_path: Path, tokenizer: Path
) -> None:
    (tmp_path / "in").mkdir()
    expected = write_kinds(tmp_path / "in", tokenizer)
    assert len(expected) >= 25 and any("cache-" in p.name for p in (tmp_path / "in/saved_text").iterdir())
    report = made(tmp_path / "in", tokenizer, tmp_path / "out", language_field="lang")
    found: dict[str, list[str]] = {}
    for path, text in texts_in(tmp_path / "out"):
        found.setdefault(path, []).append(text)
    assert found == expected
    assert report.train.documents == report.counts["read"][0] == sum(map(len, expected.values()))
    assert {step: count[0] for step, count in report.counts.items() if step != "read"} == {
        "removed.nested_too_deeply": 1,
        "removed.not_json": 1,
        "removed.no_text_field": 1,
        "removed.binary": 2,
        "removed.utf16_without_mark": 1,
        "removed.too_many_columns": 1,
        "changed.separator_taken_off": 2,
        "noted.json_as_text": 1,
    }
    places = report.examples
    assert places["removed.nested_too_deeply"] == ["deep.jsonl, line 2"]
    assert places["removed.not_json"] == ["broken.jsonl, line 2, column 10: Unterminated string starting"]
    assert places["removed.no_text_field"] == ["broken.jsonl, line 3 (fields: body)"]
    assert places["removed.binary"] == ["paper.txt (PDF)", "program.bin (a program)"]
    assert places["removed.too_many_columns"] == ["wide.csv, row 1, ends in line 3: 3 for 2"]
    languages = Counter(about.get("language") for _, about in by_webdataset(tmp_path / "out").values())
    assert languages["en"] == languages["de"] == 1


def test_any_number_of_workers_reads_the_same(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [f"{'word ' * (n % 700)}{n}" for n in range(600)]
    (tmp_path / "in/many.txt").write_text("<|sep|>".join(texts))
    ids_of(*texts, dtype="uint16", tokenizer=tokenizer).tofile(tmp_path / "in/many.bin")
    written = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        report = made(tmp_path / "in", tokenizer, out, workers, split_at="<|sep|>")
        written.append({path.name: path.read_bytes() for path in out.glob("shard-*")})
        assert report.train.documents == 2 * len(texts)
        assert report.train.text_bytes == 2 * sum(map(len, texts))
    assert written[0] == written[1] and len(written[0]) >= 4


# What is refused, and how it is said


def dataset_dict(at: Path) -> None:
    split = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation")}
    datasets.DatasetDict(split).save_to_disk(str(at / "in"))


def nano_folder(at: Path) -> None:
    for name in ("train", "val"):
        np.array([1, 2, EOS], "uint16").tofile(at / f"in/{name}.bin")


def other_ids(at: Path) -> None:
    np.array([1, 2, 300, 3], "uint16").tofile(at / "in/a.bin")


def matrix(at: Path) -> None:
    np.save(at / "in/a.npy", np.zeros((2, 3), "int64"))


def no_column(at: Path) -> None:
    pa.parquet.write_table(pa.table({"id": [1], "doc": [{"body": "x"}]}), at / "in/a.parquet")


def packed_without_a_name(at: Path) -> None:
    (at / "in/a.jsonl").write_bytes(gzip.compress(rows("x")))


def long_text(at: Path) -> None:
    (at / "in/a.txt").write_text("word " * 1000)


def long_packed_text(at: Path) -> None:
    (at / "in/a.txt.gz").write_bytes(gzip.compress(b"word " * 1000))


def broken_quotes(at: Path) -> None:
    (at / "in/a.csv").write_text('text\nfine\n"never closed\nrow\n')


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            dataset_dict,
            "in holds the splits train, validation of one dataset: name the one to read, choose with --incl",
        ),
        (nano_folder, "in holds the splits train, val"),
        (other_ids, r"a.bin: the id at position 2 is 300 \(read as uint16\), and the tokenizer has 257"),
        (matrix, r"a.npy is int64\[2, 3\], not a 1-D array of token ids"),
        (no_column, "a.parquet has no column 'text': give --text-field as one of id, doc, doc.body"),
        (packed_without_a_name, "a.jsonl holds no lines of JSON: by its first bytes it is gzip: name it .gz"),
        (
            long_text,
            "a.txt is one document of 5,000 bytes, and --max-document-bytes is 4,096: say how to split it",
        ),
        (long_packed_text, "a.txt.gz is one document of more than 4,096 bytes"),
        (broken_quotes, "a.csv cannot be read: OSError: row 1, near line 4: unexpected end of data"),
    ],
)
def test_what_is_something_else_is_refused_in_one_line(
    tmp_path: Path, tokenizer: Path, write: object, message: str
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path)  # type: ignore[operator]
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        made(tmp_path / "in", tokenizer, tmp_path / "out", max_document_bytes=4096)
    assert "\n" not in str(error.value)


def test_a_chosen_split_is_read_and_another_held_out(tmp_path: Path, tokenizer: Path) -> None:
    dataset_dict(tmp_path)
    made(tmp_path / "in/train", tokenizer, tmp_path / "one")
    assert [text for _, text in texts_in(tmp_path / "one")] == ["train"]
    made(tmp_path / "in", tokenizer, tmp_path / "chosen", include=["validation"])
    assert [text for _, text in texts_in(tmp_path / "chosen")] == ["validation"]
    made(tmp_path / "in", tokenizer, tmp_path / "both", heldout_match=["validation"])
    assert [text for _, text in texts_in(tmp_path / "both/heldout")] == ["validation"]


def test_ids_ask_for_their_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    other_ids(tmp_path)
    with pytest.raises(ValueError, match=r"a.bin holds token ids, by its name and its first bytes: give the"):
        prepare([str(tmp_path / "in")], tmp_path / "out", train_tokenizer=300, progress=False)


def test_a_nested_field(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"doc": {"body": "lines"}}\n{"doc.body": "flat"}\n{"doc": "x"}\n')
    pa.parquet.write_table(pa.table({"doc": [{"body": "table", "n": 1}]}), tmp_path / "in/b.parquet")
    report = made(tmp_path / "in", tokenizer, tmp_path / "out", text_field="doc.body")
    assert [text for _, text in texts_in(tmp_path / "out")] == ["lines", "flat", "table"]
    assert report.examples["removed.no_text_field"] == ["a.jsonl, line 3 (fields: doc)"]


def test_padding_of_tokenised_rows_is_taken_off_and_told(tmp_path: Path, tokenizer: Path) -> None:
    row = {"input_ids": [[5, 6, EOS, 0, 0]], "attention_mask": [[1, 1, 1, 0, 0]]}
    datasets.Dataset.from_dict(row).to_parquet(str(tmp_path / "a.parquet"))
    report = made(tmp_path / "a.parquet", tokenizer, tmp_path / "out")
    ((ids, _),) = by_webdataset(tmp_path / "out").values()
    assert ids.tolist() == [5, 6]
    assert (
        report.counts["changed.padding_taken_off"][0] == report.counts["changed.separator_taken_off"][0] == 1
    )


def test_llm_c_files_with_a_header(tmp_path: Path, tokenizer: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 5
    ids = np.array([EOS, 7, 8, EOS, 9], "<u2")
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    made(tmp_path / "a.bin", tokenizer, tmp_path / "out")
    assert [len(text) for _, text in texts_in(tmp_path / "out")] == [2, 1]
    for other in (ids[:4], np.append(ids, ids)):
        (tmp_path / "b.bin").write_bytes(header.tobytes() + other.tobytes())
        with pytest.raises(RuntimeError, match=r"b.bin cannot be read: .*: its header says 5 ids, and the"):
            made(tmp_path / "b.bin", tokenizer, tmp_path / "b")


def test_a_header_as_long_as_a_unit_brings_no_document_twice(tmp_path: Path, tokenizer: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3
    (tmp_path / "a.bin").write_bytes(header.tobytes() + np.array([7, 8, EOS], "<u2").tobytes())
    made(tmp_path / "a.bin", tokenizer, tmp_path / "out", shard_bytes=1024)
    assert len(texts_in(tmp_path / "out")) == 1
