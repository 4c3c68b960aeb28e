"""Seeded damage: all of it is found, and none of it is ever read as data."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, Source
from data.corpus.manifest import MANIFEST, read_manifest
from data.stream.stream import Stream
from data.verify.verify import verify
from made_corpus import make_corpus, random_documents

KINDS = ("header", "payload", "tail", "truncation", "swapped", "stale_index")
SEEDS = 84  # of each kind: 504 in all


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    return make_corpus(folder, random_documents(24, longest=300), shard_documents=6, block_documents=3)


def damage(folder: Path, kind: str, rng: random.Random) -> None:
    """One fault of a kind, somewhere in the corpus."""
    manifest = read_manifest(folder)
    entry = rng.choice(manifest.shards)
    path = folder / entry.file
    raw = bytearray(path.read_bytes())
    if kind == "truncation":
        path.write_bytes(raw[: rng.randrange(len(raw))])
        return
    if kind == "swapped":
        other = rng.choice([shard for shard in manifest.shards if shard != entry])
        path.write_bytes((folder / other.file).read_bytes())
        (folder / other.file).write_bytes(raw)
        if rng.random() < 0.5:  # their indexes go with them
            indexes = [folder / shard.index_file for shard in (entry, other)]
            a, b = (index.read_bytes() for index in indexes)
            indexes[0].write_bytes(b)
            indexes[1].write_bytes(a)
        return
    if kind == "stale_index":
        index = np.load(folder / entry.index_file)
        row, column = rng.randrange(4), rng.randrange(index.shape[1])
        index[row, column] += rng.choice([1, 2, 512])
        np.save(folder / entry.index_file, index)
        return
    if kind == "tail":
        last = rng.randrange(1, len(raw) // 2)
        assert any(raw[-last:]) or last < 10_240 + 1024
        if not any(raw[-last:]):
            last = len(raw) // 2
        raw[-last:] = bytes(last)
    else:
        index = np.load(folder / entry.index_file)
        full = [i for i in range(index.shape[1]) if index[1, i]]
        offset, tokens = index[:2, rng.choice(full)].tolist()
        if kind == "payload":
            place = offset + rng.randrange(2 * tokens)
        else:
            place = (offset - 1) // 512 * 512 - 512 + rng.randrange(345)
        raw[place] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def crcs(rows_of: Stream, numbers: range) -> set[str]:
    rows = rows_of.read(numbers)
    return {
        hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest() for a, b in zip(rows.tokens, rows.following)
    }


def open_stream(folder: Path, on_corrupt: str = "stop") -> Stream:
    return Stream.open(
        DataConfig([Source(str(folder))], seq_len=32, on_corrupt=on_corrupt), seed=0, global_batch=4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_damage_is_found_and_none_is_read(tmp_path: Path, corpus: Path, kind: str) -> None:
    whole = open_stream(corpus)
    count = sum(whole.sequences_per_epoch.values())
    true = crcs(whole, range(count))
    found = 0
    for seed in range(SEEDS):
        folder = tmp_path / str(seed)
        shutil.copytree(corpus, folder)
        damage(folder, kind, random.Random(f"{kind}{seed}"))
        findings = verify(folder)
        assert findings and all("\n" not in finding.problem for finding in findings)
        found += 1
        # Training either stops in one line that names the file, or the fault is not in what it reads.
        read, message = None, ""
        try:
            read = crcs(open_stream(folder), range(count))
        except RuntimeError as error:
            message = str(error)
        if read is None:
            assert "\n" not in message and str(folder) in message
        else:
            assert kind in ("header", "tail") and read == true
        shutil.rmtree(folder)
    assert found == SEEDS


def test_an_untouched_corpus_has_no_finding(corpus: Path) -> None:
    assert verify(corpus) == []
    assert verify(corpus.parent) == []  # the folder above it, as `prepare` makes with a held-out split


def test_strays_and_a_changed_tokenizer_are_found(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    shutil.copy(folder / "shard-000000.tar", folder / "shard-999999.tar")
    (folder / "tokenizer.json").write_bytes(b"{ }")
    assert [Path(finding.file).name for finding in verify(folder)] == ["tokenizer.json", "shard-999999.tar"]
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match="is not a corpus"):
        verify(folder)


def flip(folder: Path, shard: int, place: int) -> tuple[str, int]:
    """Flips a bit in the ids of a document; (file, offset)."""
    entry = read_manifest(folder).shards[shard]
    index = np.load(folder / entry.index_file)
    offset = int(index[0, place])
    assert index[1, place] > 0
    raw = bytearray((folder / entry.file).read_bytes())
    raw[offset] ^= 1
    (folder / entry.file).write_bytes(raw)
    return entry.file, offset


def test_a_damaged_document_is_named_by_shard_sample_and_offset(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    file, offset = flip(folder, 1, 2)
    stream = open_stream(folder)
    with pytest.raises(RuntimeError, match=rf"{file}: sample '00000008', byte {offset}: .*checksum"):
        stream.read(range(sum(stream.sequences_per_epoch.values())))
    assert any(f.sample == "00000008" and f.offset == offset for f in verify(folder))


def test_a_shard_that_changes_under_the_run_is_found(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    stream = open_stream(folder)
    stream.read([0])
    for shard, entry in enumerate(read_manifest(folder).shards):
        for place in np.flatnonzero(np.load(folder / entry.index_file)[1]).tolist():
            flip(folder, shard, place)
    with pytest.raises(RuntimeError, match="checksum"):
        stream.read(range(sum(stream.sequences_per_epoch.values())))


def test_quarantine_masks_in_place_and_shifts_nothing(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    flip(folder, 0, 1)
    flip(folder, 2, 3)
    whole, stream = open_stream(corpus), open_stream(folder, "quarantine")
    count = 2 * sum(whole.sequences_per_epoch.values())
    true, rows = whole.read(range(count)), stream.read(range(count))
    masked = (rows.following == -1).all(axis=1)
    assert 0 < masked.sum() < count
    assert (rows.tokens[masked] == stream.eos).all()
    assert (rows.tokens[~masked] == true.tokens[~masked]).all()
    assert (rows.following[~masked] == true.following[~masked]).all()
    assert set(stream.quarantined) == set(np.flatnonzero(masked).tolist())
    entries = [(number, entry) for number, found in stream.quarantined.items() for entry in found]
    assert all(entry["sequence"] == number for number, entry in entries)
    assert {entry["sample"] for _, entry in entries} == {"00000001", "00000015"}
    listed = dict(stream.quarantined)
    one_by_one = open_stream(folder, "quarantine")
    for number in reversed(range(count)):
        assert (one_by_one.read([number]).following == rows.following[number]).all()
    assert one_by_one.quarantined == listed
