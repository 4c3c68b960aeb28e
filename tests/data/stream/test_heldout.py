"""Held-out corpora: each token of each document is a target once; damage is named or left out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import Heldout
from data.corpus.storage import ShardBytes
from data.stream.heldout import HeldoutLoader
from made_corpus import EOS, make_corpus, numbered_documents


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), max_size=12),
    seq_len=st.integers(2, 24),
    overlap=st.integers(0, 23),
    ranks=st.integers(1, 4),
    micro_batch=st.integers(1, 4),
)
def test_every_heldout_token_is_a_target_once_with_its_context(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    seq_len: int,
    overlap: int,
    ranks: int,
    micro_batch: int,
) -> None:
    overlap %= seq_len
    folder = tmp_path_factory.mktemp("heldout")
    lengths = [*lengths, 3]
    make_corpus(folder, numbered_documents(lengths), shard_documents=4)
    ends = np.cumsum(lengths)
    targets: list[int] = []
    shapes, counts, sequences = set(), set(), []
    for rank in range(ranks):
        loader = HeldoutLoader(
            Heldout(str(folder), "held"),
            seq_len=seq_len,
            rank=rank,
            ranks=ranks,
            micro_batch=micro_batch,
            overlap=overlap,
        )
        batches = list(loader)
        counts.add((len(batches), len(loader)))
        for batch in batches:
            sequences += batch.sequences
            for tokens, wanted in zip(batch.tensors["tokens"].tolist(), batch.tensors["following"].tolist()):
                shapes.add((len(tokens), len(wanted), batch.rows))
                counted = [column for column, target in enumerate(wanted) if target >= 0]
                targets += [wanted[column] for column in counted]
                for column in counted:
                    token, target = tokens[column], wanted[column]
                    assert target == token + 1 or token == EOS or (target == EOS and token in ends)
                if counted and tokens[0] != EOS:
                    assert counted[0] == overlap  # the rest of a window is context
    ids = [target for target in targets if target != EOS]
    assert sorted(ids) == list(range(1, sum(lengths) + 1))
    assert targets.count(EOS) == sum(n > 0 for n in lengths)
    assert shapes == {(seq_len, seq_len, micro_batch)} and len(counts) == 1
    assert sorted(s for s in sequences if s >= 0) == list(range(loader.rows))
    assert (loader.name, loader.documents, loader.text_bytes) == ("held", len(lengths), 3 * sum(lengths))


def test_heldout_can_be_limited_and_read_again(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5, 6, 7]))
    loader = HeldoutLoader(Heldout(str(tmp_path)), seq_len=8, rank=0, ranks=1, micro_batch=2, max_documents=2)
    assert (loader.documents, loader.text_bytes, loader.rows) == (2, 33, 2)
    for _ in range(2):
        assert [batch.sequences for batch in loader] == [(0, 1)]


def test_heldout_damage_is_named(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5, 6, 7]))
    shard = tmp_path / "shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[int(np.load(tmp_path / "shard-000000.idx.npy")[0, 1])] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(RuntimeError, match=r"shard-000000.tar: sample '00000001', byte \d+: .*checksum"):
        list(HeldoutLoader(Heldout(str(tmp_path)), seq_len=8, rank=0, ranks=1, micro_batch=1))


def test_heldout_damage_can_be_left_out_of_nats_and_bytes(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([5, 6, 17, 7]))
    whole = HeldoutLoader(Heldout(str(tmp_path)), seq_len=8, rank=0, ranks=1, micro_batch=1)
    text_bytes = whole.text_bytes
    shard = tmp_path / "shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[int(np.load(tmp_path / "shard-000000.idx.npy")[0, 2])] ^= 1
    shard.write_bytes(raw)
    loaders = [
        HeldoutLoader(Heldout(str(tmp_path)), seq_len=8, rank=rank, ranks=2, micro_batch=1)
        for rank in range(2)
    ]
    found = {number: damage for loader in loaders for number, damage in loader.damaged()}
    assert {number: damage.sample for number, damage in found.items()} == {2: "00000002"}
    for loader in loaders:
        loader.leave_out(list(found))
        assert (loader.documents, loader.text_bytes) == (3, text_bytes - 3 * 17)
    targets = [batch.tensors["following"] for loader in loaders for batch in loader]
    assert sum(int((target != -1).sum()) for target in targets) == (5 + 6 + 7) + 3
    assert len({len(loader) for loader in loaders}) == 1


class Counted:
    """A shard that counts the bytes taken from it."""

    def __init__(self, opened: ShardBytes) -> None:
        self.opened, self.taken, self.version = opened, 0, opened.version

    @property
    def view(self) -> Counted:
        return self

    def __getitem__(self, span: slice) -> Any:
        self.taken += span.stop - span.start
        return self.opened.view[span]


def test_evaluation_takes_a_long_document_from_its_shard_twice_not_once_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to compare its checksum, once in rows: of 4 MiB of ids a row of 256 once took 4 MiB."""
    ids, seq_len, overlap = 50_000, 64, 16
    make_corpus(tmp_path, [np.arange(ids) % 49_999 + 1])
    loader = HeldoutLoader(
        Heldout(str(tmp_path)), seq_len=seq_len, rank=0, ranks=1, micro_batch=4, overlap=overlap
    )
    shard = Counted(loader.corpus.storage.open(0))
    monkeypatch.setattr(loader.corpus.storage, "open", lambda _: shard)
    targets = np.concatenate([batch.tensors["following"].ravel() for batch in loader])
    assert targets[targets >= 0].tolist() == [*(np.arange(ids) % 49_999 + 1).tolist(), EOS]
    assert loader.rows > 1000
    assert shard.taken <= 2 * (ids + loader.rows * (seq_len + 1 - (seq_len - overlap))) + 2 * ids


def test_a_heldout_document_that_is_altered_between_two_rows_is_damage(tmp_path: Path) -> None:
    make_corpus(tmp_path, [np.arange(1, 1001)])
    rows = iter(HeldoutLoader(Heldout(str(tmp_path)), seq_len=8, rank=0, ranks=1, micro_batch=1))
    next(rows)
    time.sleep(0.02)  # the kernel's clock for time stamps ticks every few milliseconds
    with (tmp_path / "shard-000000.tar").open("r+b") as file:
        file.seek(int(np.load(tmp_path / "shard-000000.idx.npy")[0, 0]) + 1000)
        file.write(b"\0\0")
    with pytest.raises(RuntimeError, match="checksum"):
        next(rows)
