"""Packing: every id of every document once, whatever the lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream.packing.kinds import PACKINGS
from data.stream.packing.packing import Documents, Fragments, Packing, layout_lengths

LENGTHS = st.lists(st.one_of(st.integers(0, 30), st.just(0), st.integers(100, 400)), min_size=1, max_size=40)


def blocks_of(count: int, size: int) -> np.ndarray:
    return np.append(np.arange(0, count, size), count)


def documents(tokens: np.ndarray, first: np.ndarray, key: int = 0) -> Documents:
    """Documents whose first text, in a pair, is a third of their ids; every fifth has one text alone."""
    first_text = np.where(np.arange(len(tokens)) % 5 == 4, -1, tokens.astype(np.int64) // 3)
    marked = np.arange(len(tokens)) % 4 != 3
    return Documents(layout_lengths(tokens), first, first_text, marked, key)


def packing_of(kind: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> Packing:
    return PACKINGS[kind](documents(tokens, first), seq_len)


def count_windows(kind: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
    return PACKINGS[kind].count(documents(tokens, first), seq_len)


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
@given(lengths=LENGTHS, half=st.integers(1, 32), block=st.integers(1, 12))
def test_a_pair_is_a_half_window_of_each_text(lengths: list[int], half: int, block: int) -> None:
    tokens, first = np.array(lengths), blocks_of(len(lengths), block)
    packing = packing_of("pair", tokens, first, 2 * half)
    some = [document for document, n in enumerate(lengths) if n and document % 5 != 4]
    assert packing.windows == len(some) == count_windows("pair", tokens, first, 2 * half).sum()
    found = packing.fragments(np.arange(packing.windows))
    expected = []
    for row, document in enumerate(some):
        n, between = lengths[document], lengths[document] // 3
        expected += [
            (2 * row, 0, document, 0, min(1 + between, half), between),
            (2 * row + 1, 0, document, between, min(1 + n - between, half), n),
        ]
    assert [(*row, stop) for row, stop in zip(rows_of(found), found.stop.tolist())] == expected
    assert (found.opens == 1).all()


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, half=st.integers(1, 32), key=st.integers(0, 2**64 - 1))
def test_a_view_is_a_crop_of_its_document(lengths: list[int], half: int, key: int) -> None:
    tokens, first = np.array(lengths), blocks_of(len(lengths), 7)
    packing = PACKINGS["views"](documents(tokens, first, key), 2 * half)
    found = packing.fragments(np.arange(packing.windows))
    assert found.row.tolist() == list(range(2 * sum(n > 0 for n in lengths)))
    ids, n = found.length - 1, tokens[found.document]
    most = np.minimum(n, half - 1)
    assert (ids <= most).all() and (ids >= most - most // 2).all()
    assert (found.skip >= 0).all() and (found.skip + ids <= n).all()
    assert (found.stop == found.skip + ids).all() and (found.opens == 1).all()


def test_crops_are_drawn_evenly_and_apart() -> None:
    tokens = np.full(20_000, 39)
    packing = PACKINGS["views"](documents(tokens, np.array([0, 20_000]), 5), 64)
    found = packing.fragments(np.arange(20_000))
    ids, begin = (found.length - 1).reshape(-1, 2), found.skip.reshape(-1, 2)
    sizes = np.bincount(ids.ravel())[16:]
    assert len(sizes) == 16 and (abs(sizes / sizes.mean() - 1) < 0.08).all()  # of 16 to 31 ids
    # Of 39 ids a crop of 31 begins at one of 9 places.
    places = np.bincount(begin[ids == 31])
    assert len(places) == 9 and (abs(places / places.mean() - 1) < 0.25).all()
    for drawn in (ids, begin - (39 - ids) / 2):
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03
    again = PACKINGS["views"](documents(tokens, np.array([0, 20_000]), 6), 64).fragments(np.arange(20_000))
    assert (again.skip != found.skip).mean() > 0.8


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 32).map(lambda n: 2 * n))
def test_a_window_does_not_depend_on_what_else_is_asked(lengths: list[int], seq_len: int) -> None:
    tokens, first = np.array(lengths), blocks_of(len(lengths), 7)
    for kind in PACKINGS:
        packing = packing_of(kind, tokens, first, seq_len)
        order = np.random.default_rng(0).permutation(packing.windows)
        shuffled = rows_of(packing.fragments(order))
        parts = packing.parts
        restored = sorted((int(order[row // parts]) * parts + row % parts, *rest) for row, *rest in shuffled)
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
