"""What a start reads of a corpus of many shards: a catalogue and the shards of one era, however many there
are.

The figures of 31,000 shards are made by bench/scale/corpora.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import mapped_file
from data.config import DataConfig, Heldout, Source
from data.corpus import local
from data.corpus.columns import FIRST_TEXT, LABEL, MARKED, MEDIA
from data.corpus.corpus import Corpus, open_corpus, open_storage
from data.corpus.listing.blocks import count_blocks
from data.corpus.listing.catalogue import close_corpus
from data.corpus.listing.tables import Table, Tables, encode
from data.corpus.local import LocalStorage
from data.corpus.manifest import MANIFEST, Manifest, TokenizerEntry, read_manifest
from data.stream.heldout import HeldoutLoader
from data.stream.packing import counting
from data.stream.packing.counting import Counting, counted_alone
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.of_corpus import documents_of
from data.stream.stream import Stream
from made_corpus import linked_corpus, make_corpus, random_documents
from ranks import RankContext, RankPools
from trainer.config.run_config import RunConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.ranks import Ranks
from trainer.start.opening import open_stream


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many files of each suffix were mapped: .tar, .npy (indexes), .safetensors (tables)."""
    found: Counter[str] = Counter()
    map_bytes = mapped_file._map

    def counted(descriptor: int, path: Path) -> memoryview:
        found[path.suffix] += 1
        return map_bytes(descriptor, path)

    monkeypatch.setattr(mapped_file, "_map", counted)
    return found


def stream_of(folder: Path | str, **settings: Any) -> Stream:
    cfg = DataConfig([Source(str(folder))], seq_len=32, shuffle_blocks=4, **settings)
    return Stream.open(cfg, seed=0, global_batch=4)


@pytest.mark.parametrize("packing", ["cut", "one", "views"])
def test_a_start_maps_as_many_files_for_a_hundred_times_the_shards(
    tmp_path: Path, opened: Counter[str], packing: str
) -> None:
    found = []
    for shards in (10, 1000):
        corpus = linked_corpus(tmp_path / str(shards), shards)
        opened.clear()
        stream = stream_of(corpus, packing=packing)
        assert opened == {".safetensors": 1}, "only the catalogue"
        stream.read([2])
        found.append(dict(opened))
        assert 0 < opened[".tar"] <= opened[".npy"] <= 4, "one of each block of the era"
    assert found[0].keys() == found[1].keys()


def test_a_start_looks_at_a_bounded_number_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOKED_AT", 10)
    corpus = linked_corpus(tmp_path, 100)
    looked: list[str] = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: looked.append(path.name) or stat(path, **more))
    for rank in range(10):
        looked.clear()
        open_corpus(str(corpus), DataConfig(), rank=rank, ranks=10)
        assert [name for name in looked if name.endswith(".tar")] == [
            f"shard-{shard:06d}.tar" for shard in range(rank, 100, 10)
        ]
    looked.clear()
    open_corpus(str(corpus), DataConfig())
    assert len([name for name in looked if name.endswith(".tar")]) == 10


def test_heldout_reads_the_shards_of_the_documents_that_it_takes(
    tmp_path: Path, opened: Counter[str]
) -> None:
    corpus = linked_corpus(tmp_path, 50)
    opened.clear()
    HeldoutLoader(Heldout(str(corpus)), seq_len=8, rank=0, ranks=1, micro_batch=2, max_documents=20)
    assert opened[".npy"] == 2


def test_the_catalogue_gives_the_manifest_and_the_order_of_the_corpus_without_it(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", random_documents(300), classes=["a", None, "b"] * 100)
    plain = read_manifest(corpus)
    without = {kind: stream_of(corpus, packing=kind).read(range(60)).tokens for kind in ("cut", "best_fit")}
    close_corpus(corpus, plain)
    assert len(list(corpus.glob("catalogue-*.safetensors"))) == 1
    listed = open_storage(str(corpus)).manifest()
    assert replace(listed, shards=tuple(listed.shards)) == plain
    for key in ("documents", "tokens", "text_bytes", "fingerprint"):
        assert getattr(listed, key) == getattr(plain, key)
    assert listed.shards[-1] == plain.shards[-1] and listed.shards[1:3] == plain.shards[1:3]
    for kind, tokens in without.items():
        assert (stream_of(corpus, packing=kind).read(range(60)).tokens == tokens).all()


@pytest.mark.parametrize(
    ("kind", "pictures"),
    [("cut", False), *((kind, on) for kind in PACKINGS if PACKINGS[kind].alone for on in (False, True))],
)
def test_the_counts_of_blocks_tell_the_windows_of_every_packing(kind: str, pictures: bool) -> None:
    rng = np.random.default_rng(0)
    columns = (*MEDIA, LABEL, FIRST_TEXT, MARKED)
    manifest = Manifest(TokenizerEntry("t", "ab", 9, 0), "uint16", 64, (), columns=columns)
    index = rng.integers(0, 40, (4 + len(columns), 1000)) * rng.integers(0, 2, (4 + len(columns), 1000))
    for row in (manifest.row(LABEL), manifest.row(FIRST_TEXT), manifest.row(MARKED)):
        index[row, rng.random(1000) < 0.4] = -1
    bounds = np.array([0, 1, 300, 777, 1000])

    documents = documents_of(manifest, index, bounds, kind, pictures=pictures)
    told = PACKINGS[kind].counted(count_blocks(manifest, index, bounds), 32, pictures)
    assert told is not None and told.tolist() == PACKINGS[kind].count(documents, 32).tolist()


def opened_corpus(folder: Path, *spare: Path) -> Corpus:
    return open_corpus(str(folder), DataConfig(), spare)


def test_ranks_count_a_share_each_and_get_what_one_process_counts(
    tmp_path: Path, opened: Counter[str]
) -> None:
    corpus = make_corpus(tmp_path, random_documents(500), shard_documents=20)
    alone = counted_alone(Counting(opened_corpus(corpus), "best_fit", 32))
    ranks = [Counting(opened_corpus(corpus), "best_fit", 32) for _ in range(7)]
    assert all(rank.windows is None for rank in ranks)
    shares = []
    for number, rank in enumerate(ranks):
        opened.clear()
        shares.append(rank.share(number, len(ranks)))
        assert opened[".npy"] in (3, 4)
    for rank in ranks:
        rank.join(shares)
        assert rank.windows is not None and (rank.windows == alone).all()


def kept(corpus: Path, spare: Path, opened: Counter[str]) -> tuple[np.ndarray, int]:
    """The windows of best_fit, and how many indexes were read for them."""
    opened.clear()
    return counted_alone(Counting(opened_corpus(corpus, spare), "best_fit", 32)), opened[".npy"]


def test_what_was_counted_is_kept_and_counted_again_where_it_is_damaged(
    tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 100)
    corpus, spare = make_corpus(tmp_path / "corpus", random_documents(500)), tmp_path / "spare"
    true, reads = kept(corpus, spare, opened)
    assert reads == 10 and not spare.exists()
    again, reads = kept(corpus, spare, opened)
    assert reads == 0 and (again == true).all()
    for pattern in ("windows-*", "catalogue-*"):
        (table,) = corpus.glob(pattern)
        raw = bytearray(table.read_bytes())
        for place in (3, 40, len(raw) // 2, len(raw) - 1):
            table.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
            capsys.readouterr()
            again, reads = kept(corpus, spare, opened)
            assert reads == 10 and (again == true).all(), (pattern, place)
            assert f"{table} is damaged" in capsys.readouterr().err
            assert table.read_bytes() == raw, "written anew"
        table.write_bytes(raw[: len(raw) // 2])
        assert kept(corpus, spare, opened)[1] == 10
    assert not list(corpus.glob(".tmp-*"))


def test_tables_go_to_the_next_folder_where_the_first_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tables = Tables([tmp_path / "file" / "corpus", tmp_path / "spare", tmp_path / "last"])
    table = Table({"kind": "x"}, {"windows": np.arange(4)})
    tables.write("name", table)
    assert [path.name for path in (tmp_path / "spare").iterdir()] == ["name.safetensors"]
    found = tables.read("name", {"kind": "x"})
    assert found is not None and found.arrays["windows"].tolist() == [0, 1, 2, 3]
    assert tables.read("name", {"kind": "y"}) is None
    tables.write("name", table, last=True)
    assert (tmp_path / "last" / "name.safetensors").read_bytes() == encode(table)


def test_a_table_that_counts_another_corpus_is_found_when_an_era_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole file with a right hash, as a fault of this program might leave it."""
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 100)
    corpus = make_corpus(tmp_path / "corpus", random_documents(500))
    stream_of(corpus, packing="best_fit")
    tables = Tables([corpus])
    (path,) = corpus.glob("windows-*")
    found = tables.read(path.stem, {})
    assert found is not None
    tables.write(path.stem, Table(found.head, {"windows": found.arrays["windows"] + 1}))
    stream = stream_of(corpus, packing="best_fit")
    with pytest.raises(RuntimeError, match=r"fill \d+ sequences, and its tables count \d+: remove") as raised:
        stream.read([0])
    assert "\n" not in str(raised.value) and str(corpus) in str(raised.value)


def test_an_index_is_read_and_checked_when_its_era_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = linked_corpus(tmp_path, 8)
    stream = stream_of(corpus)
    damaged = corpus / "shard-000003.idx.npy"
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(raw)
    with pytest.raises(RuntimeError, match=rf"^index {damaged} is not the one in {MANIFEST}"):
        stream.read(range(sum(stream.sequences_per_epoch.values())))


def ranks_start(context: RankContext, corpus: str, run: str) -> tuple[int, int, list[int]]:
    """Open the stream of a run on this rank; the indexes read, the sequences, the first sequence."""
    reads = 0
    read = LocalStorage.index

    def counted(storage: LocalStorage, *place: Any) -> np.ndarray:
        nonlocal reads
        reads += 1
        return read(storage, *place)

    data = DataConfig([Source(corpus)], seq_len=32, packing="best_fit")
    cfg = RunConfig("run", DecoderConfig(vocab=50_000), run_dir=run, data=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "KEPT_DOCUMENTS", 100)
        patch.setattr(LocalStorage, "index", counted)
        stream = open_stream(cfg, Ranks(context.rank, context.world))
    return reads, sum(stream.sequences_per_epoch.values()), stream.read([0]).tokens[0].tolist()


def test_ranks_of_a_run_read_each_index_once_and_the_next_run_none(tmp_path: Path, ranks: RankPools) -> None:
    corpus = make_corpus(tmp_path / "corpus", random_documents(500), shard_documents=20)
    first = ranks(4).run(ranks_start, str(corpus), str(tmp_path / "run"))
    assert sorted(reads for reads, _, _ in first) == [6, 6, 6, 7]
    second = ranks(4).run(ranks_start, str(corpus), str(tmp_path / "run"))
    assert [reads for reads, _, _ in second] == [0] * 4
    alone = stream_of(corpus, packing="best_fit")
    for _, sequences, tokens in first + second:
        assert sequences == sum(alone.sequences_per_epoch.values())
        assert tokens == second[0][2]
    assert not (tmp_path / "run").exists()
