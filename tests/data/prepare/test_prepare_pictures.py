"""Corpora of pictures: folders of classes, img2dataset's tars, Parquet; what is no picture is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image
from tokenizers import Tokenizer

from data.corpus.manifest import read_manifest
from data.corpus.shards import TokenShardWriter
from data.prepare import encode
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report.outcome import PrepareReport
from data.verify.verify import verify
from pictures import encoded, pixels, write_folders

pytestmark = pytest.mark.usefixtures("no_pictures")


def made(source: Path | str, out: Path, **settings: Any) -> PrepareReport:
    given = {"tokenizer": None, "workers": 1, "progress": False}
    return prepare([str(source)], out, **(given | settings))


def samples(out: Path) -> list[dict[str, Any]]:
    """Every sample of a corpus by WebDataset's own reader, with its text, picture and JSON."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    urls = [str(out / shard.file) for shard in read_manifest(out).shards]
    found = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        ids = np.load(io.BytesIO(sample["npy"]))
        (picture,) = (sample[name] for name in ("jpg", "png", "webp") if name in sample)
        text = tokenizer.decode(ids.tolist())
        found.append({"text": text, "ids": len(ids), "picture": picture, "about": json.loads(sample["json"])})
    return found


def labels(out: Path) -> list[int]:
    manifest = read_manifest(out)
    found = [np.load(out / shard.index_file)[manifest.row("label")] for shard in manifest.shards]
    return np.concatenate(found).astype(np.int64).tolist()


def test_a_folder_of_classes_needs_no_tokenizer(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "in", ("b", "a/deep"), 3)
    (tmp_path / "in" / "loose.png").write_bytes(encoded(pixels(99)))
    report = made(tmp_path / "in", tmp_path / "out")
    assert report.train.documents == 7 and report.train.tokens == 0
    assert verify(tmp_path / "out") == []
    found = {sample["about"]["path"]: sample for sample in samples(tmp_path / "out")}
    assert {name: sample["picture"] for name, sample in found.items() if name != "loose.png"} == written
    assert found["a/deep/0003.png"]["about"]["class"] == "deep"
    assert read_manifest(tmp_path / "out").classes == ("b", "deep")
    assert sorted(labels(tmp_path / "out")) == [-1, 0, 0, 0, 1, 1, 1]
    # The same command again finds the corpus.
    assert made(tmp_path / "in", tmp_path / "out").was_complete


def test_a_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(pixels(0)))
    (tmp_path / "in" / "b.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"give either --tokenizer .*b\.txt is no picture"):
        made(tmp_path / "in", tmp_path / "out")
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "7", "png": encoded(pixels(0)), "txt": "a caption"})
    with pytest.raises(ValueError, match=r"x:x\.tar:7 has a text: give the tokenizer"):
        made(tmp_path / "x.tar", tmp_path / "out")
    assert made(tmp_path / "x.tar", tmp_path / "out", tokenizer="bytes").train.tokens > 0


def test_tars_in_the_layout_of_img2dataset(tmp_path: Path) -> None:
    """KEY.jpg, KEY.txt, KEY.json, as its documentation has them; a sample without a caption is kept."""
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as tar:
        for number in range(6):
            about = {
                "url": f"https://example.org/{number}",
                "caption": f"caption {number}" if number < 5 else None,
                "key": f"{number:09d}",
                "status": "success",
                "error_message": None,
                "width": 32,
                "height": 24,
                "original_width": 640,
                "exif": "{}",
            }
            sample = {"__key__": f"{number:09d}", "jpg": encoded(pixels(number), "JPEG"), "json": about}
            tar.write(sample | ({"txt": f"caption {number}"} if number < 4 else {}))
    report = made(tmp_path / "00000.tar", tmp_path / "out", tokenizer="bytes")
    found = samples(tmp_path / "out")
    assert [sample["text"] for sample in found] == [*(f"caption {n}" for n in range(5)), ""]
    assert [sample["picture"] for sample in found] == [encoded(pixels(n), "JPEG") for n in range(6)]
    assert report.counts["noted.no_caption"][0] == 1
    assert report.examples["noted.no_caption"] == ["00000:00000.tar:000000005"]
    assert read_manifest(tmp_path / "out").columns == ("media_offset", "media_bytes", "media_crc")


def test_classes_of_samples(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "in.tar"), encoder=False) as tar:
        for number, stated in enumerate((b"10", b"2", b"2\n")):
            tar.write({"__key__": f"{number}", "png": encoded(pixels(number)), "cls": stated})
    made(tmp_path / "in.tar", tmp_path / "out")
    assert labels(tmp_path / "out") == [10, 2, 2]  # the numbers that the source states
    assert read_manifest(tmp_path / "out").classes == tuple(str(n) for n in range(11))
    assert all(sample["ids"] == 0 for sample in samples(tmp_path / "out"))


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    """Pictures as Hugging Face's library stores them, with a caption and a class."""
    names = ["zebra", "ant", "moth"]
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), label=datasets.ClassLabel(names=names)
    )
    rows = {
        "image": [Image.fromarray(pixels(number)) for number in range(30)],
        "caption": [f"picture {number}" if number else None for number in range(30)],
        "label": [number % 3 for number in range(30)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_dataset_of_hugging_face(dataset: datasets.Dataset, kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        source = tmp_path / "in.parquet"
        dataset.to_parquet(str(source))
    else:
        source = tmp_path / "saved"
        dataset.save_to_disk(str(source))
    recipe = Recipe(image_field="image", text_field="caption", label_field="label")
    report = made(source, tmp_path / "out", tokenizer="bytes", recipe=recipe)
    found = samples(tmp_path / "out")
    assert [sample["text"] for sample in found] == ["", *(f"picture {number}" for number in range(1, 30))]
    stored = [row["bytes"] for row in dataset.cast_column("image", datasets.Image(decode=False))["image"]]
    assert [sample["picture"] for sample in found] == stored
    # The order of the names is the dataset's: a label is the same number here and there.
    assert read_manifest(tmp_path / "out").classes == ("zebra", "ant", "moth")
    assert labels(tmp_path / "out") == [number % 3 for number in range(30)]
    assert report.examples["noted.no_caption"] == [
        f"{'in.parquet' if kind == 'parquet' else 'data-00000-of-00001.arrow'}, row 0"
    ]
    assert verify(tmp_path / "out") == []


def test_columns_of_bytes_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    rows = {
        "jpg": [encoded(pixels(0), "JPEG"), None, b"no picture", encoded(pixels(1), "PNG"), b""],
        "text": ["one", "two", "three", None, "five"],
        "kind": [3, 1, 1, -1, 2],
    }
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    report = made(
        path, tmp_path / "out", tokenizer="bytes", recipe=Recipe(image_field="jpg", label_field="kind")
    )
    assert [sample["text"] for sample in samples(tmp_path / "out")] == ["one", ""]
    assert labels(tmp_path / "out") == [3, -1]
    assert read_manifest(tmp_path / "out").media == ("jpg", "png")
    assert report.examples["removed.no_picture"] == ["in:in.parquet:2 (no JPEG, PNG, WEBP, GIF, BMP)"]
    assert report.examples["removed.no_picture_in_row"] == [
        "in.parquet, row 1 (jpg is NoneType)",
        "in.parquet, row 4 (jpg is bytes)",
    ]
    for recipe, reason in (
        (Recipe(image_field="png"), r"no column 'png': give --image-field as one of jpg, text, kind"),
        (Recipe(image_field="jpg", text_field="caption"), r"no column 'caption': give --text-field"),
        (Recipe(image_field="jpg", second_field="text"), r"--image-field 'jpg' and --second-field 'text'"),
    ):
        with pytest.raises(ValueError, match=reason):
            made(path, tmp_path / "other", tokenizer="bytes", recipe=recipe)
    nested = pyarrow.table({"image": [{"bytes": b"", "path": "a/b.png"}]})
    pyarrow.parquet.write_table(nested, path)
    with pytest.raises(ValueError, match=r"the pictures are read with --image-field image"):
        made(path, tmp_path / "other", tokenizer="bytes")
    with pytest.raises(ValueError, match=r"its bytes are not stored, only its path a/b\.png"):
        made(path, tmp_path / "other", recipe=Recipe(image_field="image"))


def test_what_cannot_be_decoded_is_named_and_counted(tmp_path: Path) -> None:
    """Everything in the folder is in the corpus or in the report; the extension is that of the content."""
    folder = tmp_path / "in" / "c"
    folder.mkdir(parents=True)
    whole = encoded(pixels(0, 200, 200), "JPEG")
    files = {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "html.jpg": b"<html>404 not found</html>",
        "really_a_png.jpg": encoded(pixels(1)),
        "dot.png": encoded(pixels(2, 1, 1)),
        "progressive.jpeg": encoded(pixels(3), "JPEG", progressive=True),
    }
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    report = made(tmp_path / "in", tmp_path / "out")
    found = {sample["about"]["path"]: sample["picture"] for sample in samples(tmp_path / "out")}
    good = ("really_a_png.jpg", "dot.png", "progressive.jpeg")
    assert found == {f"c/{name}": files[name] for name in good}
    assert report.counts["read"][0] == 6 and report.counts["removed.no_picture"][0] == 3
    named = [example.split(" (")[0] for example in report.examples["removed.no_picture"]]
    assert named == ["in:c/cut.jpg", "in:c/empty.png", "in:c/html.jpg"]
    assert read_manifest(tmp_path / "out").media == ("jpg", "png")


def test_a_sample_of_several_pictures_keeps_one(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "in.tar"), encoder=False) as tar:
        tar.write({"__key__": "1", "png": encoded(pixels(1)), "jpg": encoded(pixels(2), "JPEG")})
    report = made(tmp_path / "in.tar", tmp_path / "out")
    assert [sample["picture"] for sample in samples(tmp_path / "out")] == [encoded(pixels(2), "JPEG")]
    assert report.examples["changed.further_picture"] == ["in:in.tar:1 (.png)"]


def test_workers_duplicates_and_a_held_out_class(tmp_path: Path) -> None:
    write_folders(tmp_path / "in", ("a", "b", "c"), 8)
    copy = (tmp_path / "in" / "a" / "0000.jpg").read_bytes()
    (tmp_path / "in" / "c" / "again.jpg").write_bytes(copy)
    recipe = Recipe(deduplicate="exact", heldout_match=["b"], shard_bytes=8192)
    for name, workers in (("one", 1), ("two", 2)):
        report = made(tmp_path / "in", tmp_path / name, recipe=recipe, workers=workers)
    assert report.counts["removed.duplicate"][0] == 1
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("shard-*"))
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert labels(tmp_path / "one" / "heldout") == [1] * 8
    assert sorted(labels(tmp_path / "one" / "train")) == [0] * 8 + [2] * 8


def test_pictures_in_memory_are_bounded_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 pictures without a text, 0.4 MB each: bounded by text, a batch would be all of them."""
    noise = np.random.default_rng(0).integers(0, 256, (360, 360, 3), dtype=np.uint8)
    with webdataset.TarWriter(str(tmp_path / "in.tar")) as tar:
        for number in range(40):
            raw = encoded(noise ^ number, "PNG", compress_level=0)
            tar.write({"__key__": f"{number:02d}", "png": raw})
    waiting: list[int] = []
    add = encode._Segments.add

    def counted(segments: encode._Segments, ordinal: int, document: Any) -> None:
        add(segments, ordinal, document)
        held = sum(len(raw) for _, _, each, _ in segments.waiting for raw in each.media.values())
        waiting.append(held)

    monkeypatch.setattr(encode._Segments, "add", counted)
    monkeypatch.setattr(encode, "_MEDIA_AT_ONCE_BYTES", 1 << 20)
    report = made(tmp_path / "in.tar", tmp_path / "out", recipe=Recipe(shard_bytes=4 << 20))
    assert max(waiting) < 1 << 20 < sum(len(sample["picture"]) for sample in samples(tmp_path / "out"))
    assert report.train.shards == 4  # a shard's size counts pictures too


def test_a_killed_prepare_of_pictures_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "in", ("a", "b"), 8)
    recipe = Recipe(shard_bytes=4096)
    made(tmp_path / "in", tmp_path / "whole", recipe=recipe)
    real, left = TokenShardWriter.close, [3]

    def close(writer: TokenShardWriter) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(writer)

    monkeypatch.setattr(TokenShardWriter, "close", close)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "in", tmp_path / "out", recipe=recipe)
    monkeypatch.undo()
    made(tmp_path / "in", tmp_path / "out", recipe=recipe)
    assert read_manifest(tmp_path / "out").shards == read_manifest(tmp_path / "whole").shards
