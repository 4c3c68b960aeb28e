"""The keyed permutation: exact for any size, and as good a shuffle as an ideal one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream import order
from data.stream.order import NEARBY, another, derive_key, permute


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_place_comes_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 2**40), key=st.integers(0, 2**64 - 1), place=st.integers(0, 2**40))
def test_a_place_does_not_depend_on_its_neighbours(size: int, key: int, place: int) -> None:
    places = np.array([place % size, 0, size - 1])
    together = permute(places, size, key)
    assert together.min() >= 0 and together.max() < size
    assert together.tolist() == [int(permute(np.array([p]), size, key)[0]) for p in places]


def serial_correlation(values: np.ndarray) -> float:
    return abs(float(np.corrcoef(values[:-1], values[1:])[0, 1]))


@pytest.mark.parametrize("size", [1000, 4096, 50_000])
def test_neighbours_are_as_unrelated_as_in_an_ideal_shuffle(size: int) -> None:
    # An ideal permutation's serial correlation has a standard deviation of 1/sqrt(size).
    found = [serial_correlation(permute(np.arange(size), size, derive_key("test", k))) for k in range(20)]
    assert np.mean(found) < 0.05 and max(found) < 5 / np.sqrt(size)


def test_a_weak_mixer_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_mix", lambda x: x)
    assert serial_correlation(permute(np.arange(4096), 4096, 12345)) > 0.05


@pytest.mark.parametrize("size", [2, 3, 5, 8, 20])
def test_small_domains_send_each_place_everywhere_alike(size: int) -> None:
    keys = 4000
    counts = np.zeros((size, size))
    for k in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, derive_key("small", k))] += 1
    expected = keys / size
    chi2 = ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2
    assert chi2 < 2.5  # 1 for ideal permutations


@settings(max_examples=100, deadline=None)
@given(size=st.integers(2, 5000), key=st.integers(0, 2**64 - 1))
def test_another_place_is_never_itself_and_near(size: int, key: int) -> None:
    places = np.arange(size)
    found = another(places, size, key)
    assert found.min() >= 0 and found.max() < size and (found != places).all()
    assert (abs(found - places) < NEARBY).all()
    some = np.random.default_rng(0).permutation(size)[:7]
    assert another(some, size, key).tolist() == found[some].tolist()


@pytest.mark.parametrize("size", [2, 3, 10, NEARBY + 1])
def test_each_other_place_of_a_run_is_as_likely(size: int) -> None:
    keys, place = 20_000, size - 1
    found = [int(another(np.array([place]), size, derive_key("another", k))[0]) for k in range(keys)]
    others = size - 1 if size <= NEARBY else 1  # the last run of NEARBY + 1 places is of two
    counts = np.bincount(np.array(found) - (size - 1 - others), minlength=others)
    assert counts.sum() == keys and len(counts) == others
    assert (abs(counts / keys * others - 1) < 5 * np.sqrt(others / keys)).all()


def test_keys_are_told_apart_by_each_part() -> None:
    keys = {derive_key(*parts) for parts in [(1, 2), (12,), (1, "2", 0), (0, 1, 2), ("a", 1), ("a", 2)]}
    assert len(keys) == 6
