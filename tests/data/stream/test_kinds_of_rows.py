"""Sequences that are one document each, and partners: pure functions of the sequence number, masked alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Heldout, Packing, Source
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


def test_two_texts_by_hand(tmp_path: Path) -> None:
    make_corpus(tmp_path, [[1, 2, 3, 4, 5], [6, 7, 8, 9], [10]], first_texts=[2, 4, 1])
    stream = open_stream(tmp_path, seq_len=8, packing="pair")
    rows = stream.read(range(epoch_of(stream)))
    order = np.argsort(rows.tokens[:, 1])
    assert rows.tokens[order].tolist() == [
        [0, 1, 2, 0, 0, 3, 4, 5],
        [0, 6, 7, 8, 0, 0, 0, 0],
        [0, 10, 0, 0, 0, 0, 0, 0],
    ]
    assert rows.following[order].tolist() == [
        [1, 2, 0, -1, 3, 4, 5, 0],
        [6, 7, 8, 9, 0, -1, -1, -1],  # the first text goes on beyond its half; the second is empty
        [10, 0, -1, -1, 0, -1, -1, -1],
    ]
    assert rows.length[order].tolist() == [[3, 4], [4, 1], [2, 1]]
    assert rows.positions is not None and rows.documents is not None
    assert rows.documents[order].tolist()[0] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert rows.positions[order].tolist()[0] == [0, 1, 2, 0, 0, 1, 2, 3]
    assert rows.documents[order].tolist()[1] == [0, 0, 0, 0, 2, 3, 3, 3]
    assert rows.positions[order].tolist()[1] == [0, 1, 2, 3, 0, 0, 1, 2]


def test_two_views_are_crops_of_one_document_drawn_anew_each_epoch(tmp_path: Path) -> None:
    lengths = [1, 2, 30, 7, 12, 5] * 10
    make_corpus(tmp_path, numbered_documents(lengths))
    first = np.concatenate(([0], np.cumsum(lengths)))
    stream = open_stream(tmp_path, seq_len=20, packing="views")
    epoch = epoch_of(stream)
    assert epoch == len(lengths)
    rows = stream.read(range(2 * epoch))
    crops = set()
    for tokens, following, length in zip(rows.tokens, rows.following, rows.length.tolist()):
        both = []
        for half, count in enumerate(length):
            ids = tokens[10 * half : 10 * (half + 1)].tolist()
            assert ids[0] == 0 and ids[count:] == [0] * (10 - count)
            crop = ids[1:count]
            assert crop == list(range(crop[0], crop[0] + len(crop)))
            assert following[10 * half : 10 * (half + 1)].tolist() == [*crop, 0, *[-1] * (10 - count)]
            both.append(int(np.searchsorted(first, crop[0] - 1, side="right")) - 1)
            most = min(9, lengths[both[-1]])
            assert most - most // 2 <= len(crop) <= most and crop[-1] <= first[both[-1] + 1]
            crops.add((both[-1], crop[0], len(crop)))
        assert both[0] == both[1]
    assert len(crops) > 2.2 * epoch  # of 4 · epoch crops, 20 epochs of documents of one or two ids
    again = open_stream(tmp_path, seq_len=20, packing="views")
    for part in np.array_split(np.random.default_rng(0).permutation(2 * epoch), 7):
        some = again.read(part)
        assert (some.tokens == rows.tokens[part]).all() and (some.length == rows.length[part]).all()


@pytest.mark.parametrize("packing", ["one", "pair", "views"])
def test_heldout_rows_of_classes_and_halves_are_as_in_training(tmp_path: Path, packing: Packing) -> None:
    lengths = [3, 0, 6, 9, 5]
    classes = ["b", None, "a", "b", None]
    first_texts = [1, 0, 3, 9, 2]
    make_corpus(tmp_path, numbered_documents(lengths), classes=classes, first_texts=first_texts)
    stream = open_stream(tmp_path, seq_len=12, packing=packing)
    trained = stream.read(range(epoch_of(stream)))
    assert stream.classes == ("a", "b") and trained.label is not None
    assert sorted(trained.label.tolist()) == [-1, 0, 1, 1]
    cfg = DataConfig(packing=packing, seq_len=12)
    heldout = HeldoutLoader(Heldout(str(tmp_path)), seq_len=12, rank=0, ranks=1, micro_batch=3, cfg=cfg)
    batches = list(heldout)
    assert (heldout.rows, [batch.sequences for batch in batches]) == (4, [(0, 1, 2), (3, -1, -1)])
    rows = {name: np.concatenate([b.tensors[name].numpy() for b in batches]) for name in batches[0].tensors}
    assert set(rows) == {"tokens", "following", "positions", "documents", "length", "label"}
    assert rows["label"].tolist() == [1, 0, 1, -1, -1, -1]
    assert rows["length"].shape == (6, *trained.length.shape[1:])
    assert (rows["length"][4:] == 0).all() and (rows["following"][4:] == -1).all()
    order = np.argsort([row[row > 0].min() for row in trained.tokens])
    if packing == "views":  # drawn otherwise: of the same documents
        assert heldout.text_bytes == 0
        ends = np.cumsum([n for n in lengths if n])
        for row in (trained.tokens[order], rows["tokens"][:4]):
            assert np.searchsorted(ends, row.max(axis=1)).tolist() == [0, 1, 2, 3]
        half = rows["documents"][:4].reshape(-1, 6) % 2 == 0
        assert (half.sum(axis=1) == rows["length"][:4].ravel()).all()
        return
    for name in ("tokens", "following", "positions", "documents", "length", "label"):
        assert (rows[name][:4] == getattr(trained, name)[order]).all(), name
    heldout.leave_out([3])
    left = np.concatenate([batch.tensors["tokens"].numpy() for batch in heldout])
    assert heldout.rows == 3 and (left == rows["tokens"][[0, 1, 3]]).all()


@pytest.mark.parametrize("packing", ["pair", "views"])
def test_damage_masks_both_halves(tmp_path: Path, packing: Packing) -> None:
    lengths = [5] * 12
    make_corpus(tmp_path, numbered_documents(lengths), first_texts=[2] * 12, classes=["a"] * 12)
    whole = open_stream(tmp_path, seq_len=8, packing=packing).read(range(12))
    damage(tmp_path, document=4)
    cfg = DataConfig([Source(str(tmp_path))], seq_len=8, packing=packing, on_corrupt="quarantine")
    stream = Stream.open(cfg, seed=0, global_batch=12)
    loader = Loader(stream, rank=0, ranks=1, global_batch=12, micro_batch=12)
    batch = next(loader)[0]
    loader.close()
    number = min(stream.quarantined)  # of later epochs too, which were read ahead
    assert (batch.tensors["tokens"][number] == EOS).all() and (batch.tensors["following"][number] == -1).all()
    assert batch.tensors["length"][number].tolist() == [0, 0] and batch.tensors["label"][number] == -1
    others = np.arange(12) != number
    assert (batch.tensors["tokens"].numpy()[others] == whole.tokens[others]).all()
    # A rank whose copy is sound masks the row in the same way.
    folder = tmp_path.parent / f"{tmp_path.name}-sound"
    make_corpus(folder, numbered_documents(lengths), first_texts=[2] * 12, classes=["a"] * 12)
    rows = Loader(
        Stream.open(replace(cfg, sources=[Source(str(folder))]), seed=0, global_batch=12),
        rank=0,
        ranks=1,
        global_batch=12,
        micro_batch=12,
    )
    masked = next(rows)[0].masked({number}, eos=EOS)
    rows.close()
    for name, tensor in masked.tensors.items():
        assert (tensor == batch.tensors[name]).all(), name


def test_corpora_that_cannot_fill_such_rows_are_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "text", numbered_documents([5] * 4), classes=["a", "b", "a", "b"])
    make_corpus(tmp_path / "other", numbered_documents([5] * 4), classes=["a", "c", "a", "c"])
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]: text fills no sequence with .*=pair: no"):
        open_stream(tmp_path / "text", packing="pair")
    make_corpus(tmp_path / "plain", numbered_documents([5] * 4))
    for names in (("text", "other"), ("text", "plain", "other")):
        with pytest.raises(ValueError, match=r"have different classes \('b' and 'c'\)"):
            open_stream(*(tmp_path / name for name in names), packing="one")
    with pytest.raises(ValueError, match=r"^data\.seq_len=7 is odd, and data\.packing=views halves"):
        open_stream(tmp_path / "text", packing="views", seq_len=7)
    with pytest.raises(ValueError, match=r"^data\.seq_len=2 with data\.packing=views: the first input of a"):
        open_stream(tmp_path / "text", packing="views", seq_len=2)


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


CHANGES: list[dict[str, Any]] = [{}, {"partners": True}, {"packing": "one"}, {"packing": "views"}]


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
    with pytest.raises(ValueError, match=r"^data\.sources\[0\]: \S+ has one sequence, and data"):
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
        *("tokens", "following", "positions", "documents", "length", "label", "partner", "partner_following")
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
