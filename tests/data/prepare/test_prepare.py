"""`prepare` from end to end: what it writes, that the bytes are the same, what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from common.mapped_file import map_file
from data.corpus import scan
from data.corpus.index import read_index
from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from prepared import by_webdataset, run, tree, write_texts

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return write_texts(tmp_path / "texts")


def test_plain_webdataset_reads_every_document_and_the_text_comes_back(tmp_path: Path, texts: dict) -> None:
    report = run(tmp_path, "corpus")
    tokenizer = Tokenizer.from_file(str(tmp_path / "corpus/train/tokenizer.json"))
    read = {**by_webdataset(tmp_path / "corpus/train"), **by_webdataset(tmp_path / "corpus/heldout")}
    assert read.keys() == texts.keys()
    for name, (ids, about) in read.items():
        assert ids.dtype == np.uint16
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == texts[name]
        assert about["text_bytes"] == len(texts[name].encode())
    assert report.heldout is not None
    assert report.train.documents + report.heldout.documents == len(texts)
    assert report.heldout.documents > 0
    assert report.train.shards > 3


def test_the_strict_scanner_makes_the_same_index_as_the_writer(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "corpus")
    manifest = read_manifest(tmp_path / "corpus/train")
    for entry in manifest.shards:
        path = tmp_path / "corpus/train" / entry.file
        index, _ = scan.token_index(map_file(path), "x", dtype="uint16", vocab=manifest.tokenizer.vocab)
        np.testing.assert_array_equal(index, read_index(path.with_suffix(".idx.npy"), entry))


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, texts: dict) -> None:
    for workers in (1, 2, 3):
        run(tmp_path, f"workers{workers}", workers, filters=["gopher_repetition"], deduplicate="near")
    one, *others = (tree(tmp_path / f"workers{workers}") for workers in (1, 2, 3))
    assert len(one) > 10
    for other in others:
        assert other == one


def test_the_split_is_by_content_and_not_by_place(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "before")
    held = set(by_webdataset(tmp_path / "before/heldout"))
    (tmp_path / "texts/part0/aaa.txt").write_text("one file more, before all others")
    run(tmp_path, "after")
    assert set(by_webdataset(tmp_path / "after/heldout")) - {"part0/aaa.txt"} == held


def test_an_explicit_rule_holds_out_what_it_names(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "corpus", heldout_match=["part3/*"])
    held = set(by_webdataset(tmp_path / "corpus/heldout"))
    assert held == {name for name in texts if name.startswith("part3/")}


def test_text_that_looks_like_the_separator_is_text(tmp_path: Path, texts: dict) -> None:
    (tmp_path / "texts/part0/trick.txt").write_text("one <|endoftext|> two")
    run(tmp_path, "corpus", heldout_match=["part1/*"])
    ids, _ = by_webdataset(tmp_path / "corpus/train")["part0/trick.txt"]
    assert 0 not in ids
    tokenizer = Tokenizer.from_file(str(tmp_path / "corpus/train/tokenizer.json"))
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == "one <|endoftext|> two"


# What is wrong, in one line


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_changed_settings_are_refused_by_name(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "corpus")
    with pytest.raises(ValueError, match="--normal-form: not given → 'NFC'") as error:
        run(tmp_path, "corpus", normal_form="NFC")
    one_line(error)
    (tmp_path / "texts/part0/file000.txt").write_text("changed")
    with pytest.raises(ValueError, match="the source files themselves"):
        run(tmp_path, "corpus")


def test_a_folder_with_somebody_elses_corpus_is_refused(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "corpus")
    (tmp_path / "corpus/.prepare/plan.json").unlink()
    with pytest.raises(ValueError, match="holds a corpus already"):
        run(tmp_path, "corpus")


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (["nowhere"], {"train_tokenizer": 400}, "source nowhere is not there"),
        ([], {"train_tokenizer": 400}, "no source"),
        (["texts"], {}, "give either --tokenizer"),
        (["texts"], {"tokenizer": "gone.json"}, "tokenizer gone.json is not there"),
        (["texts"], {"tokenizer": "texts/part0/file000.txt"}, "cannot be read as a tokenizer.json"),
        (["texts"], {"train_tokenizer": 100}, "give at least 257"),
        (["texts"], {"train_tokenizer": 400, "heldout": 1.0}, "--heldout 1.0 is not a share"),
        (["empty"], {"train_tokenizer": 400}, "source empty holds no file"),
        (
            ["blank"],
            {"tokenizer": "bytes"},
            "no document is left of 1 that were read \\(nothing in it 1, as in",
        ),
        (["texts"], {"tokenizer": "bytes", "recipe": Recipe(format="doc")}, "--format 'doc' is none of"),
        (
            ["texts"],
            {"tokenizer": "bytes", "recipe": Recipe(heldout_match=["*.tex"])},
            r"--heldout-match '\*.tex' matches none of: ",
        ),
        (
            ["texts"],
            {"tokenizer": "bytes", "heldout": 1e-9, "recipe": Recipe(heldout_by="file")},
            "--heldout 1e-09 by file holds out 0 of 3 files",
        ),
        (
            ["texts"],
            {"tokenizer": "bytes", "heldout": 0.1, "recipe": Recipe(heldout_match=["*.txt"])},
            "--heldout 0.1 and --heldout-match: the files that match are held out and no others",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list, settings: dict, message: str
) -> None:
    write_texts(tmp_path / "texts", count=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank/blank.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        prepare(sources, Path("out"), progress=False, workers=1, **settings)
    one_line(error)
    assert not Path("out").exists(), "nothing is left of a mistake"


@pytest.mark.parametrize(
    ("name", "heldout"),
    [
        ("tokenizer.json", 0.0),
        ("shard-000000.tar", 0.0),
        ("datacard.md", 0.5),
        ("train/tokenizer.json", 0.5),
        ("heldout/manifest.json", 0.5),
    ],
)
def test_a_file_that_is_no_part_of_a_corpus_is_never_written_over(
    tmp_path: Path, name: str, heldout: float
) -> None:
    texts = write_texts(tmp_path / "texts", count=8)
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    arguments = {"tokenizer": "bytes", "workers": 1, "progress": False}
    with pytest.raises(ValueError, match=f"{mine} is there, and would be written over: give") as error:
        prepare([str(tmp_path / "texts")], tmp_path / "out", heldout=heldout, **arguments)
    one_line(error)
    assert mine.read_text() == "mine" and not (tmp_path / "out/.prepare").exists()
    if "/" in name:  # a corpus without a held-out side has no such file
        made = prepare([str(tmp_path / "texts")], tmp_path / "out", **arguments)
        assert made.train.documents == len(texts) and mine.read_text() == "mine"


def test_a_corpus_is_not_made_in_its_own_source(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts", count=3)
    with pytest.raises(ValueError, match="is --out itself: give the corpus a folder of its own"):
        prepare([str(tmp_path / "texts")], tmp_path / "texts", tokenizer="bytes", progress=False)
    assert sum(path.is_file() for path in (tmp_path / "texts").rglob("*")) == len(texts)


def test_what_failed_before_it_made_anything_does_not_hold_the_folder(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=3)
    (tmp_path / "blank.txt").write_text(" ")
    out = tmp_path / "corpus"
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on"):
        prepare([str(tmp_path / "blank.txt")], out, train_tokenizer=400, workers=1, progress=False)
    report = prepare([str(tmp_path / "texts")], out, tokenizer="bytes", workers=1, progress=False)
    assert report.train.documents == 3


def test_a_corpus_inside_its_own_source_is_no_source(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=5)
    for _ in range(2):
        report = prepare(
            [str(tmp_path / "texts")], tmp_path / "texts/out", tokenizer="bytes", workers=1, progress=False
        )
    assert report.was_complete and report.train.documents == 5
