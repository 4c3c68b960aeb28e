"""The stream: every token once an epoch, and one order whoever reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, Heldout, MixtureStage, Source
from data.stream.stream import Stream
from made_corpus import EOS, make_corpus, numbered_documents, random_documents
from opened import epoch_of, open_stream


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(
        st.one_of(st.integers(0, 40), st.just(0), st.integers(200, 500)), min_size=1, max_size=30
    ),
    seq_len=st.integers(1, 40),
    shards=st.integers(1, 5),
    block=st.integers(1, 9),
    shuffle=st.integers(1, 4),
)
def test_every_token_is_a_target_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory,
    packing: str,
    lengths: list[int],
    seq_len: int,
    shards: int,
    block: int,
    shuffle: int,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    lengths = [*lengths, 3]
    per_shard = -(-len(lengths) // shards)
    make_corpus(folder, numbered_documents(lengths), shard_documents=per_shard, block_documents=block)
    cfg = {"packing": packing, "seq_len": seq_len, "shuffle_blocks": shuffle, "document_mask": True}
    stream = open_stream(folder, **cfg)
    epoch = epoch_of(stream)
    for first in (0, epoch, 7 * epoch):
        rows = stream.read(range(first, first + epoch))
        counted = rows.following[rows.following >= 0]
        ids = counted[counted != EOS]
        assert sorted(ids.tolist()) == list(range(1, sum(lengths) + 1))
        assert (counted == EOS).sum() == sum(n > 0 for n in lengths)  # every document's end
        assert ((rows.tokens >= 0) & (rows.tokens < 50_000)).all()
        check_neighbours(rows, numbered_ends(lengths))


def numbered_ends(lengths: list[int]) -> set[int]:
    return set(np.cumsum(lengths).tolist())


def check_neighbours(rows: Any, ends: set[int]) -> None:
    """A counted target is what follows its input in the document; positions and documents agree."""
    for tokens, targets, positions, documents in zip(
        rows.tokens, rows.following, rows.positions, rows.documents
    ):
        for column in np.flatnonzero(targets >= 0).tolist():
            token, target = int(tokens[column]), int(targets[column])
            if target == EOS:
                assert token in ends
            elif token != EOS:
                assert target == token + 1
            same = column > 0 and documents[column] == documents[column - 1]
            assert positions[column] == (positions[column - 1] + 1 if same else 0)
            if same:
                assert token == tokens[column - 1] + 1 or tokens[column - 1] == EOS
            elif column and token != EOS:
                assert tokens[column - 1] in ends  # a document's rest after another's end


def test_documents_and_positions_by_hand(tmp_path: Path) -> None:
    make_corpus(tmp_path, [[1, 2, 3], [], [4, 5]])
    rows = open_stream(tmp_path, seq_len=10, document_mask=True).read([0])
    assert rows.tokens.tolist() == [[0, 1, 2, 3, 0, 4, 5, 0, 0, 0]]
    assert rows.following.tolist() == [[1, 2, 3, 0, 4, 5, 0, -1, -1, -1]]
    assert rows.positions is not None and rows.documents is not None
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
    assert rows.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_a_sequence_does_not_depend_on_how_it_is_asked_for(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a", random_documents(120))
    make_corpus(tmp_path / "b", random_documents(70, seed=1))
    stream = open_stream(tmp_path / "a", tmp_path / "b", document_mask=True, packing="best_fit")
    count = 3 * epoch_of(stream)
    whole = stream.read(range(count))
    numbers = np.random.default_rng(0).permutation(count)
    again = open_stream(tmp_path / "a", tmp_path / "b", document_mask=True, packing="best_fit")
    for part in np.array_split(numbers, 17):
        rows = again.read(part)
        for name in ("tokens", "following", "positions", "documents"):
            assert (getattr(rows, name) == getattr(whole, name)[part]).all()


def test_seed_and_epoch_change_the_order(tmp_path: Path) -> None:
    make_corpus(tmp_path, random_documents(200))
    stream = open_stream(tmp_path)
    epoch = epoch_of(stream)
    first, second = stream.read(range(epoch)).tokens, stream.read(range(epoch, 2 * epoch)).tokens
    other = open_stream(tmp_path, seed=1).read(range(epoch)).tokens
    for changed in (second, other):
        assert (changed != first).any(axis=1).mean() > 0.9
        assert sorted(map(bytes, changed)) == sorted(map(bytes, first))


def test_weights_that_change_later_and_sources_that_come_later_keep_what_was_consumed(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        make_corpus(tmp_path / name, random_documents(60, seed=i))
    a, b, c = (tmp_path / name for name in "abc")
    before = open_stream(a, b)
    after = open_stream(a, b, stages=[MixtureStage(20, {"b": 5.0})])
    shutil.copytree(a, tmp_path / "moved")
    cfg = DataConfig(
        sources=[Source(str(tmp_path / "moved")), Source(str(b)), Source(str(c), weight=0.0, name="c")],
        seq_len=16,
        shuffle_blocks=3,
        stages=[MixtureStage(20, {"c": 2.0})],
    )
    added = Stream.open(cfg, seed=0, global_batch=8)
    kept = before.read(range(160)).tokens
    for changed in (after, added):
        assert (changed.read(range(160)).tokens == kept).all()
        assert (changed.read(range(160, 400)).tokens != before.read(range(160, 400)).tokens).any()
        assert changed.fingerprint_at(160) == before.fingerprint_at(160)
        assert changed.fingerprint_at(161) != before.fingerprint_at(161)
        assert changed.fingerprint != before.fingerprint


def test_the_fingerprint_sees_whatever_moves_a_token(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a", random_documents(60))
    make_corpus(tmp_path / "b", random_documents(60, seed=1))
    a, b = tmp_path / "a", tmp_path / "b"
    streams = [
        open_stream(a),
        open_stream(b),
        open_stream(a, b),
        open_stream(a, seed=1),
        open_stream(a, seq_len=17),
        open_stream(a, packing="best_fit"),
        open_stream(a, shuffle_blocks=2),
    ]
    assert len({stream.fingerprint_at(8) for stream in streams}) == len(streams)
    assert open_stream(a, document_mask=True, prefetch=9).fingerprint == streams[0].fingerprint


def test_max_epochs_bounds_a_source_and_ends_the_stream(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([50] * 40))
    cfg = DataConfig([Source(str(tmp_path), max_epochs=2)], seq_len=16)
    stream = Stream.open(cfg, seed=0, global_batch=4)
    assert stream.length == 2 * epoch_of(stream)
    ids = stream.read(range(stream.length)).following
    assert (np.bincount(ids[ids > 0])[1:] == 2).all()
    with pytest.raises(ValueError, match="past the end of the data"):
        stream.read([stream.length])


def test_temperature_mixes_by_size_or_evenly(tmp_path: Path) -> None:
    make_corpus(tmp_path / "big", numbered_documents([100] * 90))
    make_corpus(tmp_path / "small", numbered_documents([100] * 10))
    shares = {}
    for temperature in (0.0, 1.0, 2.0, 1e9):
        stream = open_stream(tmp_path / "big", tmp_path / "small", temperature=temperature)
        shares[temperature] = stream.mixture.counts(100_000)[0] / 100_000
    assert shares == pytest.approx({0.0: 0.5, 1.0: 0.9, 2.0: 0.75, 1e9: 0.5}, abs=1e-4)
    with pytest.raises(
        ValueError, match=r"data\.temperature=0\.1 leaves nothing of source 'small', weight 1"
    ):
        open_stream(tmp_path / "big", tmp_path / "small", temperature=0.1)


# What a user gets wrong.


def test_a_missing_an_empty_and_a_mismatched_corpus_are_one_line(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a", random_documents(5))
    make_corpus(tmp_path / "none", [])
    make_corpus(tmp_path / "hollow", [[], []])
    make_corpus(tmp_path / "other", random_documents(5), tokenizer=b'{"other": 1}')
    for folders, reason in [
        (["nowhere"], "is not a corpus: no such folder"),
        (["none"], "is empty: no document has a token"),
        (["hollow"], "is empty: no document has a token"),
        (["a", "other"], "prepared with different tokenizers"),
    ]:
        with pytest.raises(ValueError, match=rf"^.*{reason}.*$") as caught:
            open_stream(*(tmp_path / name for name in folders))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [MixtureStage(5, {"zz": 1.0})]}, "no source is called 'zz'"),
        ({"stages": [MixtureStage(5), MixtureStage(5)]}, "does not come after"),
        ({"sources": [Source("x"), Source("x")]}, "two sources called 'x'"),
        ({"heldout": [Heldout("x", "h"), Heldout("h")]}, "data.heldout has two sets called 'h'"),
    ],
)
def test_a_wrong_config_names_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream.open(DataConfig(**({"sources": [Source("x")]} | change)), seed=0, global_batch=8)
