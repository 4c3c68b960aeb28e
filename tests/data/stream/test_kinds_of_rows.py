"""Sequences that are one document each, and partners: pure functions of the sequence number, masked alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Heldout, Source
from data.stream.heldout import HeldoutLoader
from data.stream.loader import Loader
from data.stream.stream import Stream
from data.stream.tracing import sequence
from made_corpus import EOS, make_corpus, numbered_documents, random_documents
from opened import epoch_of, open_stream


def test_one_document_a_row_by_hand(tmp_path: Path) -> None:
    make_corpus(tmp_path, [[1, 2, 3], [], [4, 5, 6, 7, 8, 9]])
    stream = open_stream(tmp_path, seq_len=6, packing="one")
    rows = stream.read(range(epoch_of(stream)))
    order = np.argsort(rows.tokens[:, 1])
    assert rows.tokens[order].tolist() == [[0, 1, 2, 3, 0, 0], [0, 4, 5, 6, 7, 8]]
    assert rows.following[order].tolist() == [[1, 2, 3, 0, -1, -1], [4, 5, 6, 7, 8, 9]]
    assert rows.length[order].tolist() == [4, 6]
    assert rows.positions is not None and rows.documents is not None
    assert rows.documents[order].tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6]
    assert rows.positions[order].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]]


def test_heldout_rows_are_one_document_each_as_in_training(tmp_path: Path) -> None:
    lengths = [3, 0, 7, 5]
    make_corpus(tmp_path, numbered_documents(lengths))
    stream = open_stream(tmp_path, seq_len=6, packing="one", partners=True)
    trained = stream.read(range(epoch_of(stream)))
    trained_rows = {row.tobytes(): i for i, row in enumerate(trained.tokens)}
    whole = HeldoutLoader(
        Heldout(str(tmp_path)),
        seq_len=6,
        rank=0,
        ranks=1,
        micro_batch=2,
        overlap=2,
        cfg=DataConfig(packing="one", partners=True),
    )
    batches = list(whole)
    assert (whole.rows, len(batches), batches[1].sequences) == (3, 2, (2, -1))
    seen = set()
    for batch in batches:
        for row, number in enumerate(batch.sequences):
            arrays = {name: tensor[row].numpy() for name, tensor in batch.tensors.items()}
            if number < 0:
                assert arrays["length"] == 0 and (arrays["documents"] == 1).all()
                assert (arrays["following"] == -1).all() and (arrays["partner_following"] == -1).all()
                continue
            same = trained_rows[arrays["tokens"].tobytes()]
            for name in ("following", "length", "positions", "documents"):
                assert (arrays[name] == getattr(trained, name)[same]).all(), name
            assert trained_rows[arrays["partner"].tobytes()] != same
            seen.add(same)
    assert len(seen) == 3
    # Of a document of 7 ids a row of 6 has 6 as targets; how many bytes of text those are is not known.
    assert whole.text_bytes == 0
    longer = HeldoutLoader(
        Heldout(str(tmp_path)), seq_len=8, rank=0, ranks=1, micro_batch=2, cfg=DataConfig(packing="one")
    )
    assert longer.text_bytes == 3 * sum(lengths)


def test_partners_are_other_sequences_of_the_source_whoever_asks(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a", random_documents(80))
    make_corpus(tmp_path / "b", [ids + 20_000 for ids in numbered_documents([9] * 40)])
    stream = open_stream(tmp_path / "a", tmp_path / "b", partners=True)
    count = 3 * epoch_of(stream)
    whole = stream.read(range(count))
    assert whole.partner is not None and whole.partner_following is not None
    alone = open_stream(tmp_path / "a", tmp_path / "b").read(range(count))
    assert (whole.tokens == alone.tokens).all() and (whole.following == alone.following).all()
    assert (whole.partner != whole.tokens).any(axis=1).all()  # never itself
    sources, _ = stream.mixture.locate(np.arange(count))
    rows_of = [{row.tobytes() for row in alone.tokens[sources == source]} for source in range(2)]
    assert all(row.tobytes() in rows_of[s] for row, s in zip(whole.partner, sources.tolist()))
    again = open_stream(tmp_path / "a", tmp_path / "b", partners=True)
    for part in np.array_split(np.random.default_rng(0).permutation(count), 11):
        rows = again.read(part)
        assert rows.partner is not None and (rows.partner == whole.partner[part]).all()
        assert (rows.partner_following == whole.partner_following[part]).all()  # type: ignore[index]
    other = open_stream(tmp_path / "a", tmp_path / "b", partners=True, seed=1).read(range(count))
    assert other.partner is not None and (other.partner != whole.partner).any(axis=1).mean() > 0.9


def test_partners_are_part_of_the_fingerprint_and_nothing_else_is(tmp_path: Path) -> None:
    make_corpus(tmp_path, random_documents(40))
    prints = {open_stream(tmp_path, **change).fingerprint for change in CHANGES}
    assert len(prints) == len(CHANGES)


CHANGES: list[dict[str, Any]] = [{}, {"partners": True}, {"packing": "one"}]


def test_a_damaged_partner_masks_the_row_and_a_damaged_row_its_partner(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5] * 12))
    damage(tmp_path, document=4)
    with pytest.raises(RuntimeError, match="sample '00000004'"):
        open_stream(tmp_path, seq_len=8, packing="one", partners=True).read(range(24))
    stream = open_stream(tmp_path, seq_len=8, packing="one", partners=True, on_corrupt="quarantine")
    sound = open_stream(tmp_path, seq_len=8, packing="one", on_corrupt="quarantine")
    rows, own = stream.read(range(24)), sound.read(range(24))
    assert rows.partner is not None and rows.partner_following is not None
    masked = sorted(stream.quarantined)
    assert sorted(sound.quarantined) == np.flatnonzero(own.length == 0).tolist()
    assert set(sound.quarantined) < set(masked)  # and those whose partner it is
    for number in range(24):
        blank = (rows.tokens[number] == EOS).all() and (rows.following[number] == -1).all()
        other = (rows.partner[number] == EOS).all() and (rows.partner_following[number] == -1).all()
        assert blank == other == (rows.length[number] == 0) == (number in masked), number
    entry = stream.quarantined[masked[0]][0]
    assert (entry["sequence"], entry["sample"]) == (masked[0], "00000004")


def damage(folder: Path, document: int) -> None:
    shard = folder / "shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[int(np.load(folder / "shard-000000.idx.npy")[0, document])] ^= 1
    shard.write_bytes(raw)


def test_one_sequence_has_no_partner(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5]))
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]: \S+ has one sequence an epoch, and data"):
        open_stream(tmp_path, partners=True)
    heldout = Heldout(str(tmp_path))
    with pytest.raises(ValueError, match=r"has one sequence, and data\.partners"):
        HeldoutLoader(heldout, seq_len=8, rank=0, ranks=1, micro_batch=1, cfg=DataConfig(partners=True))


def test_a_batch_has_length_and_partner_and_masks_them(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5, 6, 7, 8]))
    cfg = DataConfig([Source(str(tmp_path))], seq_len=8, packing="one", partners=True)
    loader = Loader(Stream.open(cfg, seed=0, global_batch=4), rank=0, ranks=1, global_batch=4, micro_batch=4)
    batch = next(loader)[0]
    loader.close()
    assert set(batch.tensors) == {
        *("tokens", "following", "positions", "documents", "length", "partner", "partner_following")
    }
    assert (batch.tensors["length"] == (batch.tensors["documents"] == 0).sum(dim=1)).all()
    masked = batch.masked({2}, eos=EOS).tensors
    assert (masked["length"] == 0).tolist() == [False, False, True, False]
    for name, value in (("partner", EOS), ("partner_following", -1), ("tokens", EOS), ("following", -1)):
        assert (masked[name][2] == value).all() and not (masked[name][1] == value).all()


def test_a_sequence_is_traced_with_its_partner(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([9] * 20))
    cfg = DataConfig([Source(str(tmp_path))], seq_len=16, partners=True, packing="one")
    rows = Stream.open(cfg, seed=5, global_batch=4).read(range(30))
    assert rows.partner is not None
    for number in range(30):
        found = sequence(cfg, number, seed=5, global_batch=4)
        for name, array in (("pieces", rows.tokens), ("partner", rows.partner)):
            ids = [token for token in array[number].tolist() if token]
            assert [token for piece in found[name] for token in piece["ids"]] == ids
