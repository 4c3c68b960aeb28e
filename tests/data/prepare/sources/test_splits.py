"""Splits of one data set are read as one only where the user says so, however they are named to `prepare`."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data.prepare import preconditions
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import expand
from prepared import made, rows, texts_in

pytestmark = pytest.mark.usefixtures("no_pictures")


def saved_dataset_dict(at: Path) -> None:
    """As Hugging Face's `DatasetDict.save_to_disk` leaves it, with a file that `map` left."""
    for split in ("train", "validation"):
        (at / split).mkdir(parents=True)
        for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
            table = pa.table({"text": [split]})
            with pa.ipc.new_stream(str(at / split / name), table.schema) as stream:
                stream.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": None}
        (at / split / "state.json").write_text(json.dumps(state))
        (at / split / "dataset_info.json").write_text('{"builder_name": "text"}')
    (at / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')


def read(*specs: str, **recipe: object) -> list[str]:
    """The files that a command with these sources reads."""
    chosen = Recipe(**recipe)  # type: ignore[arg-type]
    files = expand(list(specs), chosen)
    preconditions.check_files(files, chosen)
    return [file.path for file in files]


TOGETHER = (
    "holds the splits train, validation of one dataset: name the one to read, choose with --include, hold"
)


@pytest.mark.parametrize(
    "specs",
    [
        ["dd"],
        ["dd/train", "dd/validation"],
        ["dd/{train,validation}"],
        ["dd/*/*.arrow"],
        ["dd/**/*"],
        ["@list"],
        ["./dd/train", "dd/validation/data-00000-of-00001.arrow"],
        ["hub/train-00000-of-00001.parquet", "hub/validation-00000-of-00001.parquet"],
        ["hub/*.parquet"],
    ],
)
def test_splits_of_one_dataset_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specs: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_dataset_dict(tmp_path / "dd")
    (tmp_path / "list").write_text("dd/train\ndd/validation\n")
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        pa.parquet.write_table(pa.table({"text": [split]}), f"hub/{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=f"^(dd|hub|.*/dd) {TOGETHER}"):
        read(*specs)
    both = read(*specs, merge_splits=True)
    assert len(both) == 2 and not any("cache" in path or path.endswith("json") for path in both)


def test_one_split_is_chosen_and_another_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved_dataset_dict(tmp_path / "dd")
    train = ["dd/train/data-00000-of-00001.arrow"]
    assert read("dd/train") == read("dd", include=["train"]) == read("dd/*/*", include=["train"]) == train
    assert len(read("dd", heldout_match=["validation"])) == len(read("dd/*/*", heldout_match=["train"])) == 2


def test_a_pattern_that_holds_nothing_out_is_told_from_the_files_it_was_held_against(tmp_path: Path) -> None:
    """The message on splits recommends the option: it is no answer to a pattern that matches no file."""
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_bytes(rows(name))
    with pytest.raises(ValueError, match=r"^--heldout-match 'val' matches none of: train.jsonl, val.jsonl: "):
        made(tmp_path, "bytes", tmp_path / "out", heldout_match=["val"])
    assert made(tmp_path, "bytes", tmp_path / "out", heldout_match=["val.*"]).heldout is not None


def test_what_is_no_split_of_one_dataset_is_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("test/a/part.jsonl", "test/b/part.jsonl", "c4/train/x.jsonl", "wiki/valid/y.jsonl"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(rows(path))
    assert len(read("test/a", "test/b/*.jsonl", "c4/train", "wiki/valid")) == 4


@pytest.mark.parametrize("specs", [["a", "a"], ["a", "a/x.jsonl"], ["a/*", "./a/*.jsonl"], ["@list"]])
def test_a_file_that_is_named_twice_is_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specs: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jsonl").write_bytes(rows("x"))
    (tmp_path / "list").write_text(f"a\n{tmp_path}/a/x.jsonl\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a/x.jsonl is in more than one SOURCE, and would be"):
        read(*specs)


def test_a_merge_that_was_asked_for_has_both(tmp_path: Path) -> None:
    saved_dataset_dict(tmp_path / "dd")
    made(tmp_path / "dd", "bytes", tmp_path / "out", merge_splits=True)
    assert [text for _, text in texts_in(tmp_path / "out")] == ["train", "validation"]


def test_a_file_that_only_describes_a_saved_dataset_is_refused_by_name(tmp_path: Path) -> None:
    saved_dataset_dict(tmp_path / "dd")
    for name in ("dataset_dict.json", "train/state.json", "train/cache-1.arrow"):
        with pytest.raises(ValueError, match=rf"{name} is none of the data .* name the folder {tmp_path}/dd"):
            read(str(tmp_path / "dd" / name))
    assert read(str(tmp_path / "dd/train/*")) == [str(tmp_path / "dd/train/data-00000-of-00001.arrow")]


@pytest.mark.parametrize(
    "name", ["a.npy.gz", "a.bin.xz", "a.parquet.gz", "a.arrow.xz", "a.tar.gz", "a.png.gz"]
)
def test_a_compressed_file_of_which_parts_are_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw = np.array([1, 2, 256], "uint16").tobytes()
    if ".npy" in name:
        raw = b"\x93NUMPY\x01\0" + raw
    (tmp_path / name).write_bytes((gzip if name.endswith(".gz") else lzma).compress(raw))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows("compressed as well")))
    with pytest.raises(
        ValueError, match=rf"{name} is compressed, and of \w+ parts are read by their place: "
    ):
        made(tmp_path, "bytes", tmp_path / "out")
