"""Documents of two texts, and documents with a class: from rows and folders into a corpus's index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from data.config import DataConfig, Source
from data.corpus.corpus import Corpus, open_storage
from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report.outcome import PrepareReport
from data.stream.documents import DocumentReader
from data.stream.stream import Stream
from data.stream.tracing import sequence
from data.verify.verify import verify

pytestmark = pytest.mark.usefixtures("no_pictures")
QUESTIONS = [(f"Was ist {n}?", f"{n} ist {'gerade' if n % 2 == 0 else 'ungerade, é'}") for n in range(40)]


def prepared(source: Path, out: Path, recipe: Recipe, **more: Any) -> PrepareReport:
    settings = {"tokenizer": "bytes", "workers": 1, "progress": False} | more
    return prepare([str(source)], out, recipe=recipe, **settings)


def texts_of(folder: Path) -> list[tuple[str, str]]:
    """Both texts of every document, as their ids decode."""
    corpus = Corpus(open_storage(str(folder)))
    decode = Tokenizer.from_file(str(folder / "tokenizer.json")).decode
    row, found, number = corpus.manifest.row("first_text"), [], 0
    assert row is not None
    for shard, entry in enumerate(corpus.manifest.shards):
        for first in corpus.storage.index(shard)[row].astype(int).tolist():
            ids = DocumentReader(corpus).ids(number)
            found.append((decode(ids[:first].tolist()), decode(ids[first:].tolist())))
            number += 1
        assert entry.documents
    return found


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("deduplicate", ["", "exact"])
def test_rows_of_two_texts(tmp_path: Path, kind: str, deduplicate: str) -> None:
    rows = [{"q": first, "a": second} for first, second in QUESTIONS]
    file = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "csv":
        file.write_text("q,a\n" + "".join(f'"{first}","{second}"\n' for first, second in QUESTIONS))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    recipe = Recipe(text_field="q", second_field="a", deduplicate=deduplicate, shard_bytes=1024)
    report = prepared(file, tmp_path / "out", recipe)
    assert texts_of(tmp_path / "out") == QUESTIONS
    assert report.train is not None and report.round_trip[0] == report.round_trip[1] > 0
    assert report.train.text_bytes == sum(len((first + second).encode()) for first, second in QUESTIONS)
    assert len(read_manifest(tmp_path / "out").shards) > 1
    assert not verify(tmp_path / "out")


def test_pairs_are_trained_on_as_halves_and_traced(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"q": first, "a": second, "even": n % 2} for n, (first, second) in enumerate(QUESTIONS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(text_field="q", second_field="a", label_field="even")
    prepared(file, tmp_path / "out", recipe, tokenizer=None, train_tokenizer=300)
    cfg = DataConfig([Source(str(tmp_path / "out"))], seq_len=64, packing="pair")
    stream = Stream.open(cfg, seed=0, global_batch=4)
    assert stream.classes == ("0", "1") and stream.sequences_per_epoch == {str(tmp_path / "out"): 40}
    seen = []
    for number in range(40):
        found = sequence(cfg, number, seed=0, global_batch=4)
        first, second = found["pieces"]
        assert (first["column"], second["column"]) == (1, 33)
        pair = (first["text"], second["text"])
        assert first["class"] == second["class"] == str(QUESTIONS.index(pair) % 2)
        seen.append(pair)
    assert sorted(seen) == sorted(QUESTIONS)


def test_a_row_without_its_second_text_or_class_is_counted(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "b": "c", "kind": "x"},
        {"text": "d"},
        {"text": "e", "b": 5},
        {"text": "f", "b": ""},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepared(file, tmp_path / "out", Recipe(second_field="b", label_field="kind"))
    assert texts_of(tmp_path / "out") == [("a", "c")]
    assert report.counts["removed.no_second_text"][0] == 3 and report.counts["noted.no_class"][0] == 3
    assert "b is int" in report.examples["removed.no_second_text"][1]
    assert "b is empty" in report.examples["removed.no_second_text"][2]
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), table)
    for recipe, reason in (
        (Recipe(second_field="zz"), "has no column 'zz': give --second-field as one of text, b, kind"),
        (Recipe(label_field="zz"), "has no column 'zz': give --label-field as one of text, b, kind"),
        (Recipe(label_field="kind", label_folder=1), "give one of the two, from which"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepared(table, tmp_path / "none", recipe)


def test_numbers_as_classes_keep_their_order_and_names_are_sorted(tmp_path: Path) -> None:
    for name, labels in (("numbers", [10, 9, 2, 10]), ("names", ["b", "a", "c", "b"])):
        table = pyarrow.table({"text": ["p", "q", "r", "s"], "y": labels})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        prepared(tmp_path / f"{name}.parquet", tmp_path / name, Recipe(label_field="y"))
    classes = {name: read_manifest(tmp_path / name).classes for name in ("numbers", "names")}
    assert classes["names"] == ("a", "b", "c")
    assert classes["numbers"][10] == "10" and classes["numbers"][2] == "2" and len(classes["numbers"]) == 11
    rows = Stream.open(
        DataConfig([Source(str(tmp_path / "numbers"))], seq_len=4, packing="one"), seed=0, global_batch=1
    ).read(range(4))
    assert rows.label is not None
    assert rows.label[np.argsort(rows.tokens[:, 1])].tolist() == [10, 9, 2, 10]


@pytest.mark.parametrize(
    ("folder", "expected"), [(1, ["a", "b", None]), (2, ["x", None, None]), (-1, ["x", "b", None])]
)
def test_a_folder_names_the_class_of_a_text(tmp_path: Path, folder: int, expected: list[str | None]) -> None:
    for place in ("a/x/one.txt", "b/two.txt", "three.txt"):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / place).write_text(place)
    report = prepared(tmp_path / "in", tmp_path / "out", Recipe(label_folder=folder))
    corpus = Corpus(open_storage(str(tmp_path / "out")))
    row = corpus.manifest.row("label")
    assert row is not None
    labels = corpus.storage.index(0)[row].astype(np.int64).tolist()
    names = [None if label < 0 else corpus.manifest.classes[label] for label in labels]
    assert names == expected
    assert report.counts["noted.no_class"][0] == expected.count(None)
