"""Packing: every id of every document once, whatever the lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream.pack import PACKINGS, Fragments, Packing, count_windows, packing_of

LENGTHS = st.lists(st.one_of(st.integers(0, 30), st.just(0), st.integers(100, 400)), min_size=1, max_size=40)


def blocks_of(count: int, size: int) -> np.ndarray:
    return np.append(np.arange(0, count, size), count)


def rows_of(fragments: Fragments) -> list[tuple[int, ...]]:
    columns = (fragments.row, fragments.column, fragments.document, fragments.skip, fragments.length)
    return list(zip(*(column.tolist() for column in columns)))


def everything(packing: Packing) -> list[tuple[int, ...]]:
    return rows_of(packing.fragments(np.arange(packing.windows)))


@pytest.mark.parametrize("kind", ["cut", "best_fit"])
@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 64), block=st.integers(1, 12))
def test_every_input_of_every_document_once_and_none_overlap(
    kind: str, lengths: list[int], seq_len: int, block: int
) -> None:
    tokens, first = np.array(lengths, dtype=np.uint64), blocks_of(len(lengths), block)
    packing = packing_of(kind, tokens, first, seq_len)
    windows = count_windows(kind, tokens, first, seq_len)
    assert windows.sum() == packing.windows
    places: list[list[int]] = [[] for _ in lengths]
    taken = set()
    for row, column, document, skip, length in everything(packing):
        assert length > 0
        places[document] += range(skip, skip + length)
        cells = {(row, c) for c in range(column, column + length)}
        assert not cells & taken and column + length <= seq_len
        taken |= cells
        # A window's documents are of its own block.
        assert np.searchsorted(np.cumsum(windows), row, side="right") == document // block
    for n, found in zip(lengths, places):
        assert sorted(found) == list(range(n + 1 if n else 0))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 64), block=st.integers(1, 12))
def test_one_window_holds_the_beginning_of_one_document(lengths: list[int], seq_len: int, block: int) -> None:
    tokens, first = np.array(lengths), blocks_of(len(lengths), block)
    packing = packing_of("one", tokens, first, seq_len)
    windows = count_windows("one", tokens, first, seq_len)
    some = [document for document, n in enumerate(lengths) if n]
    assert everything(packing) == [
        (row, 0, document, 0, min(lengths[document] + 1, seq_len)) for row, document in enumerate(some)
    ]
    assert windows.tolist() == [sum(n > 0 for n in lengths[a:b]) for a, b in pairwise(first.tolist())]


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 64))
def test_a_window_does_not_depend_on_what_else_is_asked(lengths: list[int], seq_len: int) -> None:
    tokens, first = np.array(lengths), blocks_of(len(lengths), 7)
    for kind in PACKINGS:
        packing = packing_of(kind, tokens, first, seq_len)
        order = np.random.default_rng(0).permutation(packing.windows)
        shuffled = rows_of(packing.fragments(order))
        restored = sorted((int(order[row]), *rest) for row, *rest in shuffled)
        assert restored == sorted(everything(packing))


def naive_best_fit(lengths: list[int], seq_len: int) -> int:
    """Windows of best-fit decreasing, by looking at every window for every rest."""
    full = sum((n + 1) // seq_len for n in lengths if n)
    rooms: list[int] = []
    for rest in sorted(((n + 1) % seq_len for n in lengths if n), reverse=True):
        if rest:
            fitting = [room for room in rooms if room >= rest]
            if fitting:
                rooms[rooms.index(min(fitting))] -= rest
            else:
                rooms.append(seq_len - rest)
    return full + len(rooms)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 64))
def test_best_fit_needs_as_many_windows_as_the_naive_one_and_cuts_only_long_documents(
    lengths: list[int], seq_len: int
) -> None:
    packing = packing_of("best_fit", np.array(lengths), np.array([0, len(lengths)]), seq_len)
    assert packing.windows == naive_best_fit(lengths, seq_len)
    for _, _, document, _, length in everything(packing):
        assert length == min(seq_len, lengths[document] + 1) or lengths[document] + 1 > seq_len


def test_cut_pads_only_the_end_of_a_block() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 100)
    packing = packing_of("cut", tokens, blocks_of(100, 10), 32)
    filled = np.zeros(packing.windows, int)
    for row, _, _, _, length in everything(packing):
        filled[row] += length
    last = np.cumsum(count_windows("cut", tokens, blocks_of(100, 10), 32)) - 1
    assert (np.delete(filled, last) == 32).all()


def test_best_fit_cuts_fewer_documents_and_pads_little() -> None:
    tokens = np.random.default_rng(0).integers(20, 400, 2000)
    first, shares = blocks_of(2000, 1000), {}
    for kind in ("cut", "best_fit"):
        packing = packing_of(kind, tokens, first, 512)
        cut = np.bincount([document for _, _, document, *_ in everything(packing)]) > 1
        shares[kind] = cut.mean()
        assert (tokens + 1).sum() / (packing.windows * 512) > 0.98
    assert shares["best_fit"] == 0 < 0.3 < shares["cut"]
