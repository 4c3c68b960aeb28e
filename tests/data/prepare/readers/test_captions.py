"""Which text a picture gets: of a member, of a field of its JSON, of a list; what has none is counted."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.prepare.report.outcome import PrepareReport
from pictures import encoded, pixels
from prepared import made, texts_in

pytestmark = pytest.mark.usefixtures("no_pictures")


def tar(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar of samples: extension → bytes, or a JSON object."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number, sample in enumerate(samples):
            for extension, value in sample.items():
                raw = value if isinstance(value, bytes) else json.dumps(value).encode()
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(raw)
                file.addfile(member, io.BytesIO(raw))
    return path


def counted(report: PrepareReport, step: str) -> tuple[int, str]:
    """How often a step was counted, and the last example of it."""
    return report.counts[step][0], report.examples[step][-1]


def captions_in(folder: Path) -> list[str]:
    return [text for _, text in texts_in(folder)]


def test_of_img2datasets_folder_only_the_tars_are_read(tmp_path: Path) -> None:
    folder, picture = tmp_path / "in", encoded(pixels(1))
    for name in ("00000", "00001"):
        tar(folder / f"{name}.tar", [{"png": picture, "txt": b"a cat", "json": {"status": "success"}}])
        record = pyarrow.table({"url": ["u"], "caption": ["not this"], "key": ["0"]})
        pyarrow.parquet.write_table(record, folder / f"{name}.parquet")
        (folder / f"{name}_stats.json").write_text('{"count": 1}')
    for source in (folder, folder / "*"):
        report = made(source, "bytes", tmp_path / f"out{len(source.name)}", text_field="caption")
        assert report.files == {"webdataset": 2} and report.train.documents == 2
    assert captions_in(tmp_path / "out2") == ["a cat", "a cat"]
    # Without its tar it is a table as any other.
    (folder / "00000.tar").unlink()
    alone = made(folder, "bytes", tmp_path / "alone", text_field="caption")
    assert alone.files == {"parquet": 1, "text": 1, "webdataset": 1}


def test_a_picture_that_was_not_downloaded_is_no_text(tmp_path: Path) -> None:
    failed = {"json": {"caption": "a dog", "status": "failed_to_download"}}
    fine = {"png": encoded(pixels(1)), "json": {"caption": "a cat", "status": "success"}}
    report = made(tar(tmp_path / "a.tar", [failed, fine]), "bytes", tmp_path / "out", text_field="caption")
    assert counted(report, "removed.not_downloaded") == (1, "a:a.tar:0000 (failed_to_download)")
    assert captions_in(tmp_path / "out") == ["a cat"]


def test_the_field_that_the_command_names_comes_before_the_members(tmp_path: Path) -> None:
    sample = {"png": encoded(pixels(1)), "txt": b"alt text", "json": {"caption": "old", "long": ["new", "x"]}}
    source = tar(tmp_path / "a.tar", [sample, {"png": encoded(pixels(2)), "txt": b"alone"}])
    for field, expected in (("text", "alt text"), ("long.0", "new"), ("long.7", "alt text")):
        made(source, "bytes", tmp_path / field, text_field=field)
        assert sorted(captions_in(tmp_path / field)) == sorted([expected, "alone"]), field


def test_blank_captions_and_lists_are_counted_as_pictures_without_a_text(tmp_path: Path) -> None:
    picture = encoded(pixels(1))
    samples = [{"png": picture, "txt": b" \n"}, {"png": picture, "json": {"captions": ["a", "b"]}}]
    report = made(tar(tmp_path / "a.tar", samples), "bytes", tmp_path / "out", text_field="captions")
    assert counted(report, "noted.no_caption") == (2, "a:a.tar:0001 (captions is list)")
    assert report.train.tokens == 0


def table(path: Path) -> Path:
    """Pictures with two captions each and a list of classes, as Hugging Face's datasets store them."""
    rows = [{"bytes": encoded(pixels(i)), "path": None} for i in range(3)]
    captions = [[f"first {i}", f"second {i}"] for i in range(3)]
    columns = {"image": rows, "captions": captions, "labels": [["a"], ["b"], ["a"]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_field": "captions"}, r"column 'captions' holds lists .*: give --text-field captions\.0"),
        (
            {"text_field": "captions.0", "label_field": "labels"},
            r"column 'labels' holds lists .*: give --label-field labels\.0",
        ),
    ],
)
def test_a_column_of_lists_is_refused_with_the_remedy(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        made(table(tmp_path / "a.parquet"), "bytes", tmp_path / "out", image_field="image", **settings)


def test_a_value_of_a_list_is_a_text_or_a_class(tmp_path: Path) -> None:
    fields = {"image_field": "image", "text_field": "captions.1", "label_field": "labels.0"}
    report = made(table(tmp_path / "a.parquet"), "bytes", tmp_path / "out", **fields)
    assert captions_in(tmp_path / "out") == ["second 0", "second 1", "second 2"]
    assert "noted.no_class" not in report.counts


def test_a_class_that_is_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "topic": ["x"]}\n')
    report = made(tmp_path / "a.jsonl", "bytes", tmp_path / "out", label_field="topic")
    assert counted(report, "noted.no_class") == (1, "a.jsonl, line 1 (it is list)")


def test_the_place_of_a_document_is_without_its_class(tmp_path: Path) -> None:
    source = tar(tmp_path / "a.tar", [{"png": b"no picture", "cls": b"3"}, {"png": encoded(pixels(1))}])
    report = made(source, "bytes", tmp_path / "out")
    assert counted(report, "removed.no_picture")[1].startswith("a:a.tar:0000 (no JPEG")
