"""Pictures damaged in a shard, JPEG and PNG: `data verify` names each, and no run shows one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig, Heldout, Source
from data.corpus.columns import MEDIA
from data.corpus.index import read_index
from data.corpus.manifest import read_manifest
from data.pictures import decoders
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.stream.heldout import HeldoutLoader
from data.stream.loader import Loader
from data.stream.stream import Stream
from launch import cli
from pictures import write_folders

PICTURES = 16
DAMAGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a bit of the pixels": lambda raw, _: _flipped(raw, len(raw) * 2 // 3, 1),
    "the first byte": lambda raw, _: _flipped(raw, 0, 255),
    "the end is zeros": lambda raw, _: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2),
    # This one can be decoded: only the checksum tells.
    "another picture in its place": lambda raw, other: other + bytes(len(raw) - len(other)),
}


class Damaged(NamedTuple):
    """Where a picture was damaged."""

    shard: str
    sample: str
    offset: int


def _flipped(raw: bytes, place: int, bits: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ bits]) + raw[place + 1 :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folders(folder / "in", ("cat", "dog"), PICTURES // 2)
    recipe = Recipe(shard_bytes=8192, block_documents=4)
    prepare(
        [str(folder / "in")],
        folder / "corpus",
        tokenizer="bytes",
        recipe=recipe,
        workers=1,
        progress=False,
    )
    return folder / "corpus"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_PAUSE_SECONDS", 0.0)


def damage(corpus: Path, form: str, how: str) -> Damaged:
    """Damage the longest picture of a format, JPEG or PNG."""
    manifest, found = read_manifest(corpus), []
    for entry in manifest.shards:
        index = read_index(corpus / entry.index_file, entry, manifest.index_rows)
        raw = (corpus / entry.file).read_bytes()
        for at, size in index[[manifest.row(name) for name in MEDIA[:2]]].T.tolist():
            if Image.open(io.BytesIO(raw[at : at + size])).format == form:
                found.append((size, at, corpus / entry.file, raw[at : at + size]))
    size, at, path, picture = max(found)
    other = min(found)[-1]
    raw = path.read_bytes()
    changed = DAMAGES[how](picture, other)
    assert len(changed) == size and changed != picture
    path.write_bytes(raw[:at] + changed + raw[at + size :])
    key = raw[at - 512 : at - 412].split(b".")[0].decode()
    return Damaged(str(path), key, at)


def config(corpus: Path, on_corrupt: str) -> DataConfig:
    return DataConfig(
        [Source(str(corpus))],
        seq_len=4,
        packing="one",
        image_size=16,
        on_corrupt=on_corrupt,  # type: ignore[arg-type]
    )


def batches(stream: Stream) -> dict[int, dict[str, np.ndarray]]:
    """Sequence number → its row, of an epoch in micro-batches of two."""
    loader = Loader(stream, rank=0, ranks=1, global_batch=4, micro_batch=2)
    try:
        return {
            number: {name: tensor[row].numpy() for name, tensor in batch.tensors.items()}
            for _ in range(PICTURES // 4)
            for batch in next(loader)
            for row, number in enumerate(batch.sequences)
        }
    finally:
        loader.close()


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_it_is_named_and_never_shown(
    form: str, how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(whole, corpus)
    expected = batches(Stream.open(config(corpus, "stop"), seed=0, global_batch=4))
    assert len(expected) == PICTURES
    damaged = damage(corpus, form, how)

    assert cli.main(["data", "verify", str(corpus), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (named,) = (f for f in findings if f["problem"] == "its picture is damaged")
    assert (named["file"], named["sample"], named["offset"]) == damaged
    (other,) = (f for f in findings if f is not named)
    assert (other["file"], "SHA-256" in other["problem"]) == (damaged.shard, True)

    with pytest.raises(RuntimeError) as stopped:
        batches(Stream.open(config(corpus, "stop"), seed=0, global_batch=4))
    message = str(stopped.value)
    named_as = (
        f"shard {damaged.shard}: sample {damaged.sample!r}, byte {damaged.offset}: its picture cannot be"
    )
    assert message.startswith(named_as) and "\n" not in message

    stream = Stream.open(config(corpus, "quarantine"), seed=0, global_batch=4)
    found = batches(stream)
    (number,) = (n for n in stream.quarantined if n < PICTURES)  # of later epochs too, which were read ahead
    (entry,) = stream.quarantined[number]
    assert (entry["shard"], entry["sample"], entry["offset"]) == damaged
    masked = found.pop(number)
    assert not masked["image"].any() and masked["label"] == -1 and masked["length"] == 0
    for other_number, row in found.items():
        for name, array in row.items():
            np.testing.assert_array_equal(array, expected[other_number][name])

    heldout = HeldoutLoader(
        Heldout(str(corpus)), seq_len=4, rank=0, ranks=1, micro_batch=4, cfg=config(corpus, "stop")
    )
    ((_, report),) = heldout.damaged()
    assert (report.shard, report.sample, report.offset) == damaged


def test_a_shard_that_was_cut_short_names_each_picture_that_is_lost(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(whole, corpus)
    manifest = read_manifest(corpus)
    entry = max(manifest.shards, key=lambda shard: shard.documents)
    index = read_index(corpus / entry.index_file, entry, manifest.index_rows)
    offsets, sizes = (index[manifest.row(name)] for name in MEDIA[:2])
    path = corpus / entry.file
    path.write_bytes(path.read_bytes()[: int(offsets[-2] + sizes[-2] // 2)])
    assert cli.main(["data", "verify", str(corpus), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    lost = [f["offset"] for f in findings if f["problem"] == "its picture is damaged"]
    assert lost == offsets[-2:].tolist()
    with pytest.raises(RuntimeError, match=rf"{entry.file}.*{entry.bytes}"):
        Stream.open(config(corpus, "stop"), seed=0, global_batch=4).read(range(PICTURES))
