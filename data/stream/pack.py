"""How documents fill sequences: pure functions of the documents' lengths, block by block.

A document of n ids is laid out as a separator and its ids: n + 1 inputs, whose targets are its ids and, at
the last, the separator that ends it. So every id is a target exactly once, and so is every document's end.
Empty documents take no room. A *window* is `seq_len` inputs, and becomes one sequence. Windows never cross a
block; what is left of a block's windows is padding. A *fragment* is the part of a document that one window
holds.

PACKINGS has the ways to pack (`data.packing`):
- cut: documents end to end, cut every seq_len inputs. Only a block's last window has padding.
- best_fit: a document longer than a window is cut into full windows and a rest; rests and short documents go,
  longest first, each into the fullest window that still holds it (best-fit decreasing; Ding et al. 2024,
  arXiv:2404.10830). Few documents are cut; windows may end in padding.
- one: each document begins a window of its own, and ends with it: what is longer than a window is left out.
  For objectives that are about documents, such as classification. Here alone not every id is a target.

    a block of documents A (5 inputs), B (2), C (8), D (3), and seq_len 6 (. is padding)

    cut         AAAAAB  BCCCCC  CCCDDD
    best_fit    CCCCCC  AAAAA.  DDDBB.  CC....
    one         AAAAA.  BB....  CCCCCC  DDD...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Fragments:
    """Parts of documents in windows; int64 [fragments] each, ordered by row, then column.

    row: the window that holds the fragment, as a place in the list of windows that was asked for.
    column: the first of the window's inputs that the fragment takes.
    document: the fragment's document, as a place in the lengths that were packed.
    skip: the document's inputs before the fragment; 0 where it begins with the document's separator, else
        with the document's id `skip - 1`.
    length: inputs of the fragment.
    """

    row: np.ndarray
    column: np.ndarray
    document: np.ndarray
    skip: np.ndarray
    length: np.ndarray


class Packing(Protocol):
    """The windows of a run of blocks, one block's after another. `windows`: their number.

    lengths: inputs of each document, int64 [documents].
    first: block b holds documents [first[b], first[b + 1]), int64 [blocks + 1].
    seq_len: inputs of a window.
    """

    windows: int

    def __init__(self, lengths: np.ndarray, first: np.ndarray, seq_len: int) -> None: ...

    @staticmethod
    def count(lengths: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
        """Windows of each block, int64 [blocks], without packing them where that can be told sooner."""

    def fragments(self, windows: np.ndarray) -> Fragments:
        """The fragments in the given windows; row i is windows[i]."""


def layout_lengths(tokens: np.ndarray) -> np.ndarray:
    """Inputs that documents of `tokens` ids take: one more than their ids; none where they are empty."""
    tokens = tokens.astype(np.int64)
    return tokens + (tokens > 0)


def count_windows(packing: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
    """Windows of each block, int64 [blocks]; block b holds documents [first[b], first[b + 1])."""
    return PACKINGS[packing].count(layout_lengths(tokens), first, seq_len)


def packing_of(packing: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> Packing:
    """The windows of the blocks [first[b], first[b + 1]) of documents with `tokens` ids each."""
    return PACKINGS[packing](layout_lengths(tokens), first, seq_len)


class Cut:
    """Documents end to end, cut every seq_len inputs; see `Packing`."""

    def __init__(self, lengths: np.ndarray, first: np.ndarray, seq_len: int) -> None:
        ends = np.concatenate(([0], np.cumsum(lengths)))
        windows = -(-np.diff(ends[first]) // seq_len)
        window_ends = np.cumsum(windows)
        # Each block starts at a whole window; the gap before the next one is the padding.
        shift = (window_ends - windows) * seq_len - ends[first[:-1]]
        self.windows = int(window_ends[-1]) if len(window_ends) else 0
        self.seq_len = seq_len
        self._lengths = lengths
        self._starts = ends[:-1] + np.repeat(shift, np.diff(first))

    @staticmethod
    def count(lengths: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        ends = np.concatenate(([0], np.cumsum(lengths)))
        return -(-np.diff(ends[first]) // seq_len)

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        begin = windows.astype(np.int64) * self.seq_len
        first = np.searchsorted(self._starts, begin, side="right") - 1
        last = np.searchsorted(self._starts, begin + self.seq_len - 1, side="right") - 1
        row, document = _expand(first, last + 1)
        start = self._starts[document] - begin[row]
        skip = np.maximum(-start, 0)
        column = np.maximum(start, 0)
        length = np.minimum(self._lengths[document] - skip, self.seq_len - column)
        if length.size and length.min() <= 0:  # empty documents, and a block's end before its padding
            keep = length > 0
            row, column, document, skip, length = (x[keep] for x in (row, column, document, skip, length))
        return Fragments(row, column, document, skip, length)


class BestFit:
    """Whole documents where they fit; see `Packing`. A block is packed when one of its windows is first
    read.
    """

    def __init__(self, lengths: np.ndarray, first: np.ndarray, seq_len: int) -> None:
        self._ends = np.cumsum(self.count(lengths, first, seq_len))
        self.windows = int(self._ends[-1]) if len(self._ends) else 0
        self.seq_len = seq_len
        self._lengths, self._first = lengths, first
        self._packed: dict[int, tuple[np.ndarray, Fragments]] = {}

    @staticmethod
    def count(lengths: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        spans = zip(first[:-1].tolist(), first[1:].tolist())
        return np.array([_best_fit_count(lengths[a:b], seq_len) for a, b in spans], dtype=np.int64)

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        blocks = np.searchsorted(self._ends, windows, side="right")
        parts = []
        for block in np.unique(blocks).tolist():
            rows = np.flatnonzero(blocks == block)
            pointers, packed = self._block(block)
            local = windows[rows] - (self._ends[block - 1] if block else 0)
            which, index = _expand(pointers[local], pointers[local + 1])
            document = packed.document[index] + self._first[block]
            parts.append(
                (rows[which], packed.column[index], document, packed.skip[index], packed.length[index])
            )
        if not parts:
            return Fragments(*(np.zeros(0, dtype=np.int64) for _ in range(5)))
        columns = [np.concatenate(column) for column in zip(*parts)]
        order = np.argsort(columns[0], kind="stable")
        return Fragments(*(column[order] for column in columns))

    def _block(self, block: int) -> tuple[np.ndarray, Fragments]:
        if block not in self._packed:
            span = self._lengths[self._first[block] : self._first[block + 1]]
            self._packed[block] = _best_fit(span, self.seq_len)
        return self._packed[block]


class One:
    """One document a window, its end left out where it is longer; see `Packing`."""

    def __init__(self, lengths: np.ndarray, first: np.ndarray, seq_len: int) -> None:
        self._documents = np.flatnonzero(lengths)
        self.windows = len(self._documents)
        self.seq_len = seq_len
        self._lengths = lengths

    @staticmethod
    def count(lengths: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        before = np.concatenate(([0], np.cumsum(lengths > 0)))
        return np.diff(before[first])

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        document = self._documents[windows]
        begin = np.zeros_like(document)
        length = np.minimum(self._lengths[document], self.seq_len)
        return Fragments(np.arange(len(windows)), begin, document, begin, length)


PACKINGS: dict[str, type[Packing]] = {"cut": Cut, "best_fit": BestFit, "one": One}


def _best_fit(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, Fragments]:
    """(pointers, fragments) of one block: window w has fragments [pointers[w], pointers[w + 1])."""
    full, rest = np.divmod(lengths, seq_len)
    document, ordinal = _expand(np.zeros_like(full), full)
    window = np.arange(len(document))
    parts = [(window, np.zeros_like(window), document, ordinal * seq_len, np.full_like(window, seq_len))]
    rests = np.flatnonzero(rest)
    rests = rests[np.argsort(-rest[rests], kind="stable")]
    windows, columns = _place(rest[rests].tolist(), seq_len)
    skips = full[rests] * seq_len
    parts.append(
        (np.array(windows, np.int64) + len(window), np.array(columns, np.int64), rests, skips, rest[rests])
    )
    row, column, document, skip, length = (np.concatenate(x) for x in zip(*parts))
    order = np.lexsort((column, row))
    pointers = np.concatenate(([0], np.cumsum(np.bincount(row)))).astype(np.int64)
    return pointers, Fragments(row[order], column[order], document[order], skip[order], length[order])


def _place(sizes: list[int], seq_len: int) -> tuple[list[int], list[int]]:
    """The window and the column of each of `sizes`, which descend. Each goes into the fullest window that has
    room for it, else into a new one.
    """
    room: dict[int, list[int]] = {}  # room left → windows
    open_ = 0  # bit r is set where some window has room r
    windows, columns = [], []
    count = 0
    for size in sizes:
        fitting = open_ >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            window = room[left].pop()
            if not room[left]:
                open_ ^= 1 << left
        else:
            left, window = seq_len, count
            count += 1
        windows.append(window)
        columns.append(seq_len - left)
        left -= size
        if left:
            room.setdefault(left, []).append(window)
            open_ |= 1 << left
    return windows, columns


def _best_fit_count(lengths: np.ndarray, seq_len: int) -> int:
    """Windows of one block."""
    full, rest = np.divmod(lengths, seq_len)
    windows, _ = _place(np.sort(rest[rest > 0])[::-1].tolist(), seq_len)
    return int(full.sum()) + (max(windows) + 1 if windows else 0)


def _expand(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) for every j in [begin[i], end[i]), in order."""
    counts = end - begin
    which = np.repeat(np.arange(len(counts)), counts)
    offsets = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - (offsets - begin)[which]
