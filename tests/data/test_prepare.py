"""`prepare` from end to end: what it writes, that the bytes are the same, that killing it costs nothing."""

import contextlib
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tokenizers import Tokenizer

from data import datacard, planfile, scan, shards
from data import tokenizer as tokenizers
from data.manifest import read_index, read_manifest
from data.prepare import PrepareReport, prepare
from data.recipe import Recipe
from data.shards import TokenShardWriter
from data.verify import verify

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "ünï", "東京", "🌱"]


def write_texts(folder: Path, count: int = 60, seed: int = 0) -> dict[str, str]:
    """Text files of very unequal lengths: name → text."""
    rng = random.Random(seed)
    texts = {}
    for number in range(count):
        words = rng.choices(WORDS, k=int(rng.expovariate(1 / 200)) + 1)
        name = f"part{number % 7}/file{number:03d}.txt"
        texts[name] = "".join(word + rng.choice([" ", " ", "\n", "\r\n", "\t"]) for word in words)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(texts[name].encode())
    return texts


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return write_texts(tmp_path / "texts")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here; the pictures have their own test."""
    monkeypatch.setattr(datacard, "_draw", lambda *_: [])


SMALL = {"shard_bytes": 8 << 10}


def run(tmp_path: Path, out: str, workers: int = 1, **settings: object) -> PrepareReport:
    recipe = Recipe(**{**SMALL, **settings})  # type: ignore[arg-type]
    return prepare(
        [str(tmp_path / "texts")],
        tmp_path / out,
        train_tokenizer=400,
        heldout=0.2,
        workers=workers,
        recipe=recipe,
        progress=False,
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus but the scratch folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".prepare" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def by_webdataset(folder: Path) -> dict[str, tuple[np.ndarray, dict]]:
    """What plain webdataset reads: path → (ids, json)."""
    urls = [str(folder / shard.file) for shard in read_manifest(folder).shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return {sample["json"]["path"]: (sample["npy"], sample["json"]) for sample in dataset}


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
        index, _ = scan.token_index(scan.map_file(path), "x", dtype="uint16", vocab=manifest.tokenizer.vocab)
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


# Resuming


class Killed(BaseException):
    """Not an Exception, so that no handler of the program's can take it for one of its own."""


def crash_at(monkeypatch: pytest.MonkeyPatch, rename: int) -> Callable[[], bool]:
    """The process "dies" just before its n-th rename; returns whether it got that far."""
    real, count = os.replace, 0

    def replace(source: object, target: object) -> None:
        nonlocal count
        count += 1
        if count == rename:
            raise Killed
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    return lambda: count >= rename


def test_a_crash_before_any_rename_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is closed by one rename, so dying before each of them in turn is dying everywhere."""
    write_texts(tmp_path / "texts", count=16)
    settings = {"filters": ["gopher_repetition"], "deduplicate": "exact", "shard_bytes": 6 << 10}
    run(tmp_path, "whole", **settings)
    whole = tree(tmp_path / "whole")
    rename, died = 0, True
    while died:
        rename += 1
        out = f"crash{rename}"
        with monkeypatch.context() as patch:
            crashed = crash_at(patch, rename)
            with contextlib.suppress(Killed):
                run(tmp_path, out, **settings)
            died = crashed()
        if died:
            train = tmp_path / out / "train"
            if (train / "manifest.json").exists():
                assert tree(tmp_path / out) == whole
            run(tmp_path, out, **settings)
        assert tree(tmp_path / out) == whole, f"after dying before rename {rename}"
    assert rename > 30


def test_finished_shards_are_not_done_again(
    tmp_path: Path, texts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = shards.TokenShardWriter.close

    def close(writer: shards.TokenShardWriter) -> object:
        entry = real(writer)
        made.append(entry.file)
        if len(made) == 5:
            raise Killed
        return entry

    monkeypatch.setattr(shards.TokenShardWriter, "close", close)
    with pytest.raises(Killed):
        run(tmp_path, "corpus")
    run(tmp_path, "corpus")
    assert len(set(made)) > 8
    assert len(made) - len(set(made)) <= 2  # the two sides of the one unit that was open


def test_one_long_stream_resumes_within_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file is one unit however long it is; its finished shards are kept all the same."""
    import gzip

    texts = write_texts(tmp_path / "raw", count=80)
    (tmp_path / "texts").mkdir()
    with gzip.open(tmp_path / "texts/all.jsonl.gz", "wt") as file:
        for number, text in enumerate(texts.values()):
            file.write(json.dumps({"text": text}) + "\n" + ("not json\n" if number % 9 == 0 else ""))
    whole = run(tmp_path, "whole")
    assert whole.counts["removed.not_json"][0] == 9
    made = []
    real = shards.TokenShardWriter.close

    def close(writer: shards.TokenShardWriter) -> object:
        made.append(writer.path.name)
        if len(made) == 6:
            raise Killed
        return real(writer)

    monkeypatch.setattr(shards.TokenShardWriter, "close", close)
    with pytest.raises(Killed):
        run(tmp_path, "corpus")
    resumed = run(tmp_path, "corpus")
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")
    assert resumed.counts == whole.counts
    assert len(made) - len(set(made)) <= 2


SCRIPT = """
import sys
from pathlib import Path
from data.prepare import prepare
from data.recipe import Recipe
if __name__ == "__main__":
    prepare([sys.argv[1]], Path(sys.argv[2]), train_tokenizer=500, heldout=0.1, workers=2, progress=False,
            recipe=Recipe(shard_bytes=64 << 10, deduplicate="exact"))
"""


def test_kill_9_at_random_moments_changes_no_byte(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=900)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, script, tmp_path / "texts", tmp_path / out],
            stderr=subprocess.PIPE,
            cwd=os.getcwd(),
        )

    began = time.monotonic()
    assert start("whole").wait(240) == 0
    seconds = time.monotonic() - began
    whole = tree(tmp_path / "whole")
    rng = random.Random(7)
    killed = 0
    for attempt in range(3):
        process = start("killed")
        try:
            process.wait(seconds * rng.uniform(0.2, 0.9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if (tmp_path / "killed/train/manifest.json").exists():
            assert tree(tmp_path / "killed") == whole, (
                f"attempt {attempt} left a corpus that only looks whole"
            )
    assert killed
    last = start("killed")
    _, error = last.communicate(timeout=240)
    assert last.returncode == 0, error.decode()
    assert tree(tmp_path / "killed") == whole


def test_a_second_run_does_nothing(tmp_path: Path, texts: dict) -> None:
    first = run(tmp_path, "corpus")
    second = run(tmp_path, "corpus")
    assert second.was_complete and not first.was_complete
    assert second.train == first.train


# What is wrong, in one line


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_changed_settings_are_refused_by_name(tmp_path: Path, texts: dict) -> None:
    run(tmp_path, "corpus")
    with pytest.raises(ValueError, match="normal_form: '' → 'NFC'") as error:
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
        (["texts"], {"train_tokenizer": 400, "heldout": 1.0}, "heldout=1.0 is not a share"),
        (["empty"], {"train_tokenizer": 400}, "source empty holds no file"),
        (["blank"], {"tokenizer": "bytes"}, "no document is left of 1 that were read \\(empty 1\\)"),
        (["texts"], {"tokenizer": "bytes", "recipe": Recipe(format="doc")}, "format='doc' is none of"),
        (
            ["texts"],
            {"tokenizer": "bytes", "recipe": Recipe(heldout_match=["*.tex"])},
            r"heldout_match=\['\*.tex'\] holds out 0 of 3 files",
        ),
        (
            ["texts"],
            {"tokenizer": "bytes", "heldout": 1e-9, "recipe": Recipe(heldout_by="file")},
            "heldout=1e-09 by file holds out 0 of 3 files",
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
    made = Path("out/.prepare/units").exists()
    assert made == (sources == ["blank"]) and Path("out").exists() == made, (
        "a mistake is found before any work"
    )


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


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, texts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        with pytest.raises(RuntimeError, match="corpus: No space left on device: make room and run") as error:
            prepare(
                [str(tmp_path / "texts")], tmp_path / "corpus", tokenizer="bytes", workers=1, progress=False
            )
    one_line(error)
    prepare([str(tmp_path / "texts")], tmp_path / "corpus", tokenizer="bytes", workers=1, progress=False)
    assert len(by_webdataset(tmp_path / "corpus")) == len(texts)


def test_two_at_once_are_refused(tmp_path: Path, texts: dict) -> None:
    with (
        planfile.lock(tmp_path / "corpus", tmp_path / "corpus/.prepare"),
        pytest.raises(RuntimeError, match="another prepare is at work"),
    ):
        run(tmp_path, "corpus")


# What comes in other than text


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
    tokenizers.train("bpe", ["some text " * 9], 300).save(str(tmp_path / "tokenizer.json"))
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
            tar.write({"__key__": f"{number}", "jpg": b"picture %d" % number, "txt": f"caption {number}"})
    prepare([str(tmp_path / "in.tar")], tmp_path / "out", tokenizer="bytes", workers=1, progress=False)
    url = str(tmp_path / "out/shard-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == [b"picture %d" % number for number in range(5)]
    assert [json.loads(sample["json"])["key"] for sample in samples] == [str(number) for number in range(5)]


def test_no_worker_outlives_a_killed_prepare(tmp_path: Path) -> None:
    """A worker whose parent is gone would wait for work for ever."""
    write_texts(tmp_path / "texts", count=900)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "texts", tmp_path / "out"], cwd=os.getcwd()
    )
    units = tmp_path / "out/.prepare/units"
    deadline = time.monotonic() + 240
    while not (units.exists() and any(units.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    family = descendants(process.pid)
    assert len(family) >= 3  # the fork server and two workers
    process.kill()
    process.wait()
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, family))


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


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


def test_a_corpus_inside_its_own_source_is_no_source(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=5)
    for _ in range(2):
        report = prepare(
            [str(tmp_path / "texts")], tmp_path / "texts/out", tokenizer="bytes", workers=1, progress=False
        )
    assert report.was_complete and report.train.documents == 5


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
    picture = bytes(range(256)) * 4
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(picture)
    corpus = tmp_path / "corpus"
    prepare([str(tmp_path / "pictures")], corpus, tokenizer="bytes", workers=1, progress=False)
    assert verify(corpus) == []
    shard = next(corpus.glob("*.tar"))
    raw = bytearray(shard.read_bytes())
    raw[raw.index(picture) + 100] ^= 1
    shard.write_bytes(raw)
    assert ["SHA-256" in finding.problem for finding in verify(corpus)] == [True]
