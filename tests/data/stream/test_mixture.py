"""Mixing: exact quotas, sources' sequences in order, and a past that no later change touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream.mixture import Mixture, build
from data.stream.weights import integer_weights

WEIGHTS = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 3.0, 7.5]), min_size=1, max_size=5).filter(any)


def sources_of(mixture: Mixture, count: int) -> np.ndarray:
    return mixture.locate(np.arange(count))[0]


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, key=st.integers(0, 2**64 - 1))
def test_every_period_is_within_one_sequence_of_its_quota(weights: list[float], key: int) -> None:
    mixture = build([(0, weights)], [None] * len(weights), key)
    period = mixture.segments[0].period
    for number in (period, 2 * period, 3 * period, 1000 * period, 10**9 * period):
        exact = number * np.array(weights) / sum(weights)
        assert abs(np.array(mixture.counts(number)) - exact).max() <= 1
        assert sum(mixture.counts(number)) == number


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, later=WEIGHTS, start=st.integers(1, 5000), caps=st.booleans())
def test_each_source_gives_its_sequences_in_order(
    weights: list[float], later: list[float], start: int, caps: bool
) -> None:
    later = (later + weights)[: len(weights)]
    if not any(later):
        later = weights
    limits: list[int | None] = [100 * (i + 1) if caps else None for i in range(len(weights))]
    mixture = build([(0, weights), (start, later)], limits, 7)
    count = 6000 if mixture.length is None else mixture.length
    sources, ordinals = mixture.locate(np.arange(count))
    for i, limit in enumerate(limits):
        mine = ordinals[sources == i]
        assert (mine == np.arange(len(mine))).all()
        assert limit is None or len(mine) <= limit
    for number in {0, 1, start, start + 1, count // 3, count - 1} & set(range(count)):
        assert mixture.counts(number) == np.bincount(sources[:number], minlength=len(weights)).tolist()


def test_a_change_that_has_not_come_yet_keeps_what_was_consumed() -> None:
    before = build([(0, [0.7, 0.3])], [None, None], 5)
    for stages in (
        [(0, [0.7, 0.3]), (3001, [0.1, 0.9])],
        [(0, [0.7, 0.3]), (3001, [0.0, 1.0]), (4000, [0.5, 0.5])],
    ):
        after = build(stages, [None, None], 5)
        for a, b in zip(before.locate(np.arange(3001)), after.locate(np.arange(3001))):
            assert (a == b).all()
    added = build([(0, [0.7, 0.3, 0.0]), (3001, [0.5, 0.2, 0.3])], [None] * 3, 5)
    assert (sources_of(added, 3001) == sources_of(before, 3001)).all()


def test_a_source_that_has_run_out_leaves_its_share_to_the_others() -> None:
    mixture = build([(0, [0.5, 0.5])], [1000, None], 3)
    sources = sources_of(mixture, 20_000)
    assert (sources == 0).sum() == 1000 and mixture.length is None
    last = int(np.flatnonzero(sources == 0)[-1])
    assert 1900 < last < 2100 and (sources[last + 1 :] == 1).all()


def test_when_all_have_run_out_the_stream_ends_in_one_line() -> None:
    mixture = build([(0, [0.5, 0.5])], [10, 30], 3)
    assert mixture.length == 40
    assert np.bincount(sources_of(mixture, 40)).tolist() == [10, 30]
    with pytest.raises(ValueError, match=r"^sequence 40 is past the end of the data: .*max_epochs.*$"):
        mixture.locate(np.array([40]))


def test_sources_are_shuffled_inside_a_period() -> None:
    sources = sources_of(build([(0, [0.5, 0.5])], [None, None], 3), 64 * 1024).reshape(-1, 64)
    # Of 64 drawn from a shuffled period of 1024 halves: hypergeometric, standard deviation 3.87.
    shares = (sources == 0).sum(axis=1)
    assert shares.mean() == 32 and abs(shares.std() / 3.87 - 1) < 0.05


def test_weights_keep_the_ratio_they_are_written_in() -> None:
    assert integer_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert integer_weights([1, 0, 0.000001]) == [1_000_000, 0, 1]
    with pytest.raises(ValueError, match="all 0"):
        integer_weights([0.0, 0.0])
    with pytest.raises(ValueError, match="less than one sequence in"):
        build([(0, [1.0, 1e-9])], [None, None], 0)
