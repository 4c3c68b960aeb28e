"""`prepare` of what is no file of text: standard input, shards of ids, pictures, proteins."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tokenizers import Tokenizer

from data.corpus.manifest import read_manifest
from data.corpus.shards import TokenShardWriter
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report.outcome import PrepareReport
from data.tokenizer import training
from data.verify.verify import verify
from pictures import encoded, pixels
from prepared import by_webdataset

pytestmark = pytest.mark.usefixtures("no_pictures")


def picture(number: int) -> bytes:
    return encoded(pixels(number), "JPEG")


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(lines: list[str]) -> PrepareReport:
        raw = b"".join(json.dumps({"text": line}).encode() + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return prepare(["-"], tmp_path / "out", tokenizer="bytes", workers=1, progress=False)

    assert feed(["one", "two"]).train.text_bytes == 6
    assert feed(["one", "two"]).was_complete
    with pytest.raises(ValueError, match="the source files themselves"):
        feed(["one", "three"])


def test_shards_of_shardwriter_alone_become_a_corpus(tmp_path: Path) -> None:
    """Tars of ids that webdataset's own writer made: the ids stay, the tokenizer is checked against them."""
    training.train("bpe", ["some text " * 9], 300).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (tmp_path / "in").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "in/%03d.tar"), maxcount=7, verbose=0) as writer:
        for number in range(20):
            ids = np.array(tokenizer.encode(f"some text {number}").ids, dtype=np.int64)
            writer.write({"__key__": f"{number:04d}", "npy": ids})
    pattern = str(tmp_path / "in/{000..002}.tar")
    path = tmp_path / "tokenizer.json"
    report = prepare([pattern], tmp_path / "out", tokenizer=path, workers=1, progress=False)
    manifest = read_manifest(tmp_path / "out")
    urls = [str(tmp_path / "out" / shard.file) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [tokenizer.decode(s["npy"].tolist()) for s in samples] == [f"some text {n}" for n in range(20)]
    assert report.train.text_bytes == sum(len(f"some text {number}") for number in range(20))
    with webdataset.TarWriter(str(tmp_path / "in/000.tar")) as tar:
        tar.write({"__key__": "0", "npy": np.array([1, 300])})
    with pytest.raises(ValueError, match=r"holds token id 300, the tokenizer has \d+: give the tokenizer"):
        prepare([pattern], tmp_path / "wrong", tokenizer=path, workers=1, progress=False)
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        prepare([pattern], tmp_path / "untrained", train_tokenizer=300, workers=1, progress=False)


def test_pictures_travel_with_their_captions(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "in.tar")) as tar:
        for number in range(5):
            tar.write({"__key__": f"{number}", "jpg": picture(number), "txt": f"caption {number}"})
    prepare([str(tmp_path / "in.tar")], tmp_path / "out", tokenizer="bytes", workers=1, progress=False)
    url = str(tmp_path / "out/shard-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == [picture(number) for number in range(5)]
    assert [json.loads(sample["json"])["key"] for sample in samples] == [str(number) for number in range(5)]


def test_proteins_by_character(tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">one\nMKVLA\nGHA\n>two\nMAVLX\n")
    recipe = Recipe(train_kind="characters")
    prepare(
        [str(tmp_path / "in.fasta")],
        tmp_path / "out",
        train_tokenizer=64,
        recipe=recipe,
        workers=1,
        progress=False,
    )
    read = by_webdataset(tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    (ids, about) = read["in.fasta"]
    assert about["record"] == "two"
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == "MAVLX"
    assert len(ids) == 5


def test_shards_are_the_bytes_that_webdataset_writes(tmp_path: Path) -> None:
    names = ["a", "000000-000000007", "ü" * 40, "d" * 60 + "/" + "n" * 60]
    samples = [(key, np.arange(n, dtype=np.uint16)) for key, n in zip(names, (0, 1, 300, 5))]
    writer = TokenShardWriter(tmp_path / "ours.tar", np.dtype(np.uint16))
    with webdataset.TarWriter(
        str(tmp_path / "plain.tar"), mtime=0, user="germinal", group="germinal", mode=0o644
    ) as plain:
        plain.tarstream.format = tarfile.USTAR_FORMAT  # what it means to write; it leaves tarfile at PAX
        for key, ids in samples:
            media = {"png": b"x" * 512, "cls": b"3"}
            writer.add(key, ids, 9, {"path": "ä"}, media)
            about = json.dumps({"path": "ä", "text_bytes": 9}, ensure_ascii=False)
            plain.write({"__key__": key, "npy": ids, "json": about.encode(), **media})
    entry = writer.close()
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()
    raw, index = (tmp_path / "ours.tar").read_bytes(), np.load(tmp_path / entry.index_file)
    for (_, ids), (offset, count) in zip(samples, index[:2].T.tolist(), strict=True):
        assert raw[offset : offset + 2 * count] == ids.tobytes()


def test_a_corpus_of_pictures_is_sound_and_a_flipped_byte_of_one_is_found(tmp_path: Path) -> None:
    raw_picture = encoded(pixels(0))
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(raw_picture)
    corpus = tmp_path / "corpus"
    prepare([str(tmp_path / "pictures")], corpus, tokenizer="bytes", workers=1, progress=False)
    assert verify(corpus) == []
    shard = next(corpus.glob("*.tar"))
    raw = bytearray(shard.read_bytes())
    raw[raw.index(raw_picture) + 100] ^= 1
    shard.write_bytes(raw)
    whole, damaged = verify(corpus)
    assert "SHA-256" in whole.problem
    assert (damaged.problem, damaged.offset) == ("its picture is damaged", raw.index(raw_picture[:100]))
