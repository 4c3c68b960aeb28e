"""Pictures of sequences: one sequence number, one set of pixels, whoever reads it; damage by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import Augment, DataConfig, Heldout, Source
from data.corpus.columns import MEDIA
from data.corpus.index import read_index
from data.corpus.manifest import read_manifest
from data.pictures import decoders
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.stream import tracing
from data.stream.heldout import HeldoutLoader
from data.stream.loader import Loader
from data.stream.stream import Stream
from launch import cli
from made_corpus import make_corpus, numbered_documents
from pictures import write_folders
from served import Server

AUGMENT = Augment(crop_scale=0.3, flip=0.5, brightness=0.4, hue=0.1, grayscale=0.2)
PROGRAM = """
import hashlib, json, sys
from data.config import Augment, DataConfig, Source
from data.stream.stream import Stream
path, threads, augment = sys.argv[1], int(sys.argv[2]), Augment(**json.loads(sys.argv[3]))
cfg = DataConfig([Source(path)], seq_len=4, packing="one", image_size=16, image_views=2, augment=augment,
                 decode_threads=threads)
pictures = Stream.open(cfg, seed=3, global_batch=8).pictures(range(7, 40))
print(hashlib.sha256(pictures.tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of pictures, 3 classes of 8, with and without captions."""
    folder = tmp_path_factory.mktemp("pictures")
    write_folders(folder / "in", ("cat", "dog", "yak"), 8)
    out = folder / "corpus"
    recipe = Recipe(shard_bytes=8192, block_documents=5)
    prepare([str(folder / "in")], out, tokenizer="bytes", recipe=recipe, workers=1, progress=False)
    return out


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "corpus"
    copy.mkdir()
    for file in whole.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def config(corpus: Path | str, **settings: object) -> DataConfig:
    given = {"seq_len": 4, "packing": "one", "image_size": 16, "image_views": 2, "augment": AUGMENT}
    return DataConfig([Source(str(corpus))], **(given | settings))


def stream(corpus: Path | str, **settings: object) -> Stream:
    return Stream.open(config(corpus, **settings), seed=3, global_batch=8)


def damage(corpus: Path, shard: int = 1, place: int = 2) -> tuple[str, int]:
    """Flip a byte inside a picture; return the shard's path and the picture's first byte."""
    manifest = read_manifest(corpus)
    entry = manifest.shards[shard]
    index = read_index(corpus / entry.index_file, entry, manifest.index_rows)
    at, size = (int(index[manifest.row(name), place]) for name in MEDIA[:2])
    raw = bytearray((corpus / entry.file).read_bytes())
    raw[at + size // 2] ^= 255
    (corpus / entry.file).write_bytes(raw)
    return str(corpus / entry.file), at


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_PAUSE_SECONDS", 0.0)


def test_a_sequence_has_the_same_pixels_in_any_batch_rank_and_after_a_resume(corpus: Path) -> None:
    reading = stream(corpus)
    expected = reading.pictures(range(48))  # two epochs of 24
    labels = reading.read(range(48)).label
    assert len(np.unique(expected.reshape(48, -1), axis=0)) == 48  # the second epoch has other views
    for ranks, micro_batch, start, threads in ((1, 8, 0, 1), (1, 2, 0, 3), (2, 4, 16, 0), (4, 1, 16, 2)):
        for rank in range(ranks):
            with_threads = stream(corpus, decode_threads=threads)
            loader = Loader(
                with_threads, rank=rank, ranks=ranks, global_batch=8, micro_batch=micro_batch, start=start
            )
            for step in range((48 - start) // 8):
                rows = []
                for batch in next(loader):
                    assert batch.tensors["image"].shape == (micro_batch, 2, 16, 16, 3)
                    for row, number in enumerate(batch.sequences):
                        np.testing.assert_array_equal(batch.tensors["image"][row].numpy(), expected[number])
                        assert batch.tensors["label"][row] == labels[number]
                        assert batch.tensors["length"][row] > 0
                    rows += batch.sequences
                first = start + step * 8 + rank * (8 // ranks)
                assert rows == list(range(first, first + 8 // ranks))
            loader.close()
    reading.cfg = replace(reading.cfg, augment=Augment())
    assert not (reading.pictures([5]) == expected[5]).all()


def test_another_process_gives_the_same_pixels(corpus: Path) -> None:
    given = json.dumps(vars(AUGMENT))
    command = [sys.executable, "-c", PROGRAM, str(corpus)]
    other = subprocess.run([*command, "5", given], capture_output=True, text=True, check=True).stdout
    mine = stream(corpus, decode_threads=1).pictures(range(7, 40))
    assert other.strip() == hashlib.sha256(mine.tobytes()).hexdigest()


def test_every_picture_comes_once_an_epoch_with_its_label(corpus: Path) -> None:
    plain = stream(corpus, augment=Augment(), image_views=1)
    assert plain.sequences_per_epoch == {str(corpus): 24}
    pictures = plain.pictures(range(24))
    assert len(np.unique(pictures.reshape(24, -1), axis=0)) == 24
    assert sorted(plain.read(range(24)).label.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    # Without image_size the captions are a stream of text.
    text = Loader(stream(corpus, image_size=0), rank=0, ranks=1, global_batch=8, micro_batch=8)
    assert "image" not in next(text)[0].tensors
    text.close()


@pytest.mark.usefixtures("no_pause")
def test_a_damaged_picture_ends_the_run_at_its_step_and_is_named(corpus: Path) -> None:
    shard, offset = damage(corpus)
    reading = stream(corpus)
    loader = Loader(reading, rank=0, ranks=1, global_batch=2, micro_batch=2)
    good = 0
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012 (which step raises is the question)
        for _ in range(12):
            next(loader)
            good += 1
    assert f"shard {shard}: sample '" in str(caught.value) and f"byte {offset}: its picture" in str(
        caught.value
    )
    assert good < 12
    with pytest.raises(RuntimeError, match=f"byte {offset}"):
        reading.pictures([2 * good, 2 * good + 1])
    reading.pictures(range(2 * good))  # all before it were right


@pytest.mark.usefixtures("no_pause")
def test_under_quarantine_the_rows_of_damaged_pictures_are_masked_and_listed(corpus: Path) -> None:
    expected = stream(corpus).pictures(range(24))
    shard, offset = damage(corpus)
    reading = stream(corpus, on_corrupt="quarantine")
    loader = Loader(reading, rank=0, ranks=1, global_batch=4, micro_batch=2)
    masked = []
    for _ in range(6):
        for batch in next(loader):
            for row, number in enumerate(batch.sequences):
                if number in reading.quarantined:
                    masked.append(number)
                    values = {
                        name: int(batch.tensors[name][row].max()) for name in ("image", "following", "length")
                    }
                    assert values == {"image": 0, "following": -1, "length": 0}
                    assert batch.tensors["label"][row] == -1
                else:
                    np.testing.assert_array_equal(batch.tensors["image"][row].numpy(), expected[number])
    loader.close()
    assert len(masked) == 1
    (found,) = reading.quarantined[masked[0]]
    assert (found["shard"], found["offset"]) == (shard, offset)
    assert "checksum" in found["problem"] and found["sample"]
    loader.seek(0)
    assert reading.quarantined == {}
    loader.close()


@pytest.mark.usefixtures("no_pause")
def test_a_held_out_set_shows_centre_squares_and_names_damage(corpus: Path) -> None:
    def loader(path: Path, rank: int = 0, ranks: int = 1, **settings: object) -> HeldoutLoader:
        given = {"seq_len": 4, "rank": rank, "ranks": ranks, "micro_batch": 5}
        return HeldoutLoader(Heldout(str(path)), **given, cfg=config(corpus, **settings))

    plain = stream(corpus, augment=Augment(), image_views=1)
    centres = {picture.tobytes() for picture in plain.pictures(range(24))[:, 0]}
    found = [batch for rank in range(2) for batch in loader(corpus, rank, 2)]
    shown = [
        batch.tensors["image"][row] for batch in found for row, n in enumerate(batch.sequences) if n >= 0
    ]
    assert {views[0].numpy().tobytes() for views in shown} == centres and len(shown) == 24
    assert sum(views[1].numpy().tobytes() in centres for views in shown) < 4  # drawn
    again = {views[1].numpy().tobytes() for views in (v for b in loader(corpus) for v in b.tensors["image"])}
    assert {views[1].numpy().tobytes() for views in shown} <= again
    labels = [int(x) for batch in loader(corpus) for x in batch.tensors["label"]]
    assert labels == [0] * 8 + [1] * 8 + [2] * 8 + [-1]
    _, offset = damage(corpus)
    damaged = loader(corpus)
    ((number, report),) = damaged.damaged()
    assert report.offset == offset
    with pytest.raises(RuntimeError, match=f"byte {offset}: its picture"):
        list(damaged)
    damaged.leave_out([number])
    assert sum(n >= 0 for batch in damaged for n in batch.sequences) == 23


def test_what_has_no_pictures_or_other_classes_is_refused(corpus: Path, tmp_path: Path) -> None:
    text = make_corpus(tmp_path / "text", numbered_documents([3, 4, 5]))
    with pytest.raises(ValueError, match=r"text has no pictures, and data\.image_size=16 reads them"):
        stream(text)
    write_folders(tmp_path / "in", ("cat", "hen"), 2)
    prepare([str(tmp_path / "in")], tmp_path / "other", tokenizer="bytes", workers=1, progress=False)
    cfg = config(corpus)
    cfg.sources.append(Source(str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"have different classes \(.*dog.* and .*hen"):
        Stream.open(cfg, seed=0, global_batch=8)


def test_the_fingerprint_is_of_the_views(corpus: Path) -> None:
    prints = {
        stream(corpus, **settings).fingerprint
        for settings in ({}, {"image_size": 8}, {"image_views": 1}, {"augment": Augment()}, {"image_size": 0})
    }
    assert len(prints) == 5
    assert stream(corpus, decode_threads=3).fingerprint in prints


def test_pictures_are_read_by_range_from_a_server(corpus: Path) -> None:
    server = Server(corpus.parent)
    try:
        remote = stream(server.url)
        np.testing.assert_array_equal(remote.pictures(range(9)), stream(corpus).pictures(range(9)))
    finally:
        server.stop()


def test_inspect_says_what_a_corpus_of_pictures_is_and_writes_what_a_run_sees(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (report,) = tracing.inspect(corpus)["corpora"]
    assert (report["classes"], report["media"]) == (["cat", "dog", "yak"], ["jpg", "png"])
    run = tmp_path / "run.yaml"
    run.write_text(
        json.dumps(
            {
                "name": "run",
                "seed": 3,
                "model": {
                    "kind": "vision",
                    "image_size": 16,
                    "patch_size": 8,
                    "classes": 3,
                },
                "objective": {"kind": "classification"},
                "data": {
                    "sources": [{"path": str(corpus)}],
                    "seq_len": 4,
                    "packing": "one",
                    "image_size": 16,
                    "augment": vars(AUGMENT),
                },
                "train": {"global_batch": 8, "micro_batch": 8},
            }
        )
    )
    picture = tmp_path / "five.png"
    assert cli.main(["data", "inspect", str(run), "--sequence", "5", "--out", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ((seen,),) = stream(corpus, image_views=1).pictures([5])
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), seen)
    (piece,) = found["pieces"]
    shard = (corpus / piece["shard"]).read_bytes()
    offset, size = piece["picture"]
    pictures_of = {
        path.read_bytes(): path.parent.name for path in corpus.parent.parent.glob("pictures*/in/*/*")
    }
    assert piece["class"] == piece["meta"]["class"] == pictures_of[shard[offset : offset + size]]
    for arguments, reason in (
        ([str(corpus), "--out", "x.png"], "give --sequence N"),
        ([str(run), "--sequence", "5", "--out", "x.jpg"], "not a .png in a folder that exists"),
        ([str(run), "--sequence", "5", "--out", str(tmp_path / "no" / "x.png")], "in a folder that exists"),
    ):
        assert cli.main(["data", "inspect", *arguments]) == 2
        assert reason in capsys.readouterr().err
    tracing.write_picture(config(corpus), 5, picture, seed=3, global_batch=8)
    views = stream(corpus).pictures([5])[0]
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.concatenate(views, axis=1))
    with pytest.raises(ValueError, match=r"the run reads none: data\.image_size is 0"):
        tracing.write_picture(config(corpus, image_size=0), 5, picture, seed=3, global_batch=8)
