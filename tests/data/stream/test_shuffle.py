"""The shuffle: as good as an ideal permutation, and as quick at any position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus.corpus import Corpus
from data.stream import order
from data.stream.era import Era
from data.stream.stream import Stream
from made_corpus import EOS, make_corpus, numbered_documents, random_documents
from opened import epoch_of, open_stream


def windows_in_order(stream: Stream) -> np.ndarray:
    """Where each sequence of an epoch lies in the corpus, by its first counted id."""
    rows = stream.read(range(epoch_of(stream)))
    return np.where(rows.tokens[:, 0] == EOS, rows.tokens[:, 1], rows.tokens[:, 0]).argsort().argsort()


def shuffle_quality(stream: Stream) -> tuple[float, float]:
    """(serial correlation, spread of a batch's mean place against the ideal one)."""
    places = windows_in_order(stream)
    correlation = abs(float(np.corrcoef(places[:-1], places[1:])[0, 1]))
    batches = places[: len(places) // 32 * 32].reshape(-1, 32).mean(axis=1)
    ideal = places.std() / np.sqrt(32) * np.sqrt(1 - 32 / len(places))
    return correlation, float(batches.std() / ideal)


def test_an_epoch_is_shuffled_like_an_ideal_permutation(tmp_path: Path) -> None:
    make_corpus(tmp_path, numbered_documents([30] * 1500), shard_documents=400, block_documents=64)
    qualities = [shuffle_quality(open_stream(tmp_path, seed=s, shuffle_blocks=64)) for s in range(20)]
    correlation, spread = np.mean(qualities, axis=0)
    assert correlation < 0.05
    assert spread == pytest.approx(1, abs=0.05)


def test_a_shuffle_that_is_none_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_corpus(tmp_path, numbered_documents([30] * 1500), shard_documents=400, block_documents=64)
    monkeypatch.setattr(order, "permute", lambda places, size, key: places)
    correlation, spread = shuffle_quality(open_stream(tmp_path))
    assert correlation > 0.9 and spread > 2


def test_batches_mix_sources_as_drawing_from_their_quota_does(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        make_corpus(tmp_path / name, random_documents(30, seed=i))
    stream = open_stream(*(tmp_path / name for name in "abc"))
    sources, _ = stream.mixture.locate(np.arange(64 * 1024))
    shares = (sources.reshape(-1, 32) == 0).mean(axis=1)
    assert shares.mean() == pytest.approx(1 / 3, abs=1e-3)
    # 32 drawn without replacement from blocks of 1024.
    ideal = np.sqrt(1 / 3 * 2 / 3 / 32 * (1 - 31 / 1023))
    assert shares.std() / ideal == pytest.approx(1, abs=0.05)


def test_opening_a_far_position_takes_no_more_work_than_a_near_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path, random_documents(400), block_documents=4)
    work: list[int] = []
    permute = order.permute

    def counting(places: np.ndarray, size: int, key: int) -> np.ndarray:
        work.append(np.size(places))
        return permute(places, size, key)

    opened: list[int] = []
    init = Era.__init__

    def counting_init(self: Era, corpus: Corpus, place: order.EraBlocks, *rest: Any) -> None:
        opened.append(len(place.blocks))
        init(self, corpus, place, *rest)

    monkeypatch.setattr(order, "permute", counting)
    monkeypatch.setattr(Era, "__init__", counting_init)
    costs = []
    for start in (10**3, 10**7, 10**12):
        work.clear()
        opened.clear()
        open_stream(tmp_path).read(range(start, start + 4))
        costs.append((sum(work), sum(opened)))
    least, most = np.min(costs, axis=0), np.max(costs, axis=0)
    assert (most <= 2 * least + 8).all(), costs  # four rows fall in one to two eras, of one epoch or two
