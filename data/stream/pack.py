"""How documents fill sequences: pure functions of the documents' lengths, block by block.

A document of n ids is laid out as a separator and its ids: n + 1 inputs, whose targets are its ids and, at
the last, the separator that ends it. So every id is a target exactly once, and so is every document's end.
Empty documents take no room. Windows of `seq_len` inputs never cross a block; what is left of a block's
windows is padding.

Two ways, each giving a window's *pieces* (which part of which document lies in which columns):
- cut: documents end to end, cut every seq_len inputs. Only a block's last window has padding.
- best_fit: a document longer than a window is cut into full windows and a rest; rests and short documents go,
  longest first, each into the fullest window that still holds it (best-fit decreasing; Ding et al. 2024,
  arXiv:2404.10830). Few documents are cut; windows may end in padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Pieces:
    """Parts of documents in windows; int64 arrays of one length, ordered by row, then column.

    A piece's inputs are places [skip, skip + length) of its document's layout (place 0 is the separator,
    place p the id p - 1), and lie in columns [column, column + length) of its row.
    """

    row: np.ndarray
    column: np.ndarray
    document: np.ndarray
    skip: np.ndarray
    length: np.ndarray


class Packing(Protocol):
    """The windows of a run of blocks, one block's after another."""

    windows: int

    def pieces(self, windows: np.ndarray) -> Pieces:
        """The pieces of the given windows; row i is windows[i]."""


def layout_lengths(tokens: np.ndarray) -> np.ndarray:
    """Inputs each document takes: one more than its ids; none if it is empty."""
    tokens = tokens.astype(np.int64)
    return tokens + (tokens > 0)


def count_windows(packing: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> np.ndarray:
    """Windows of each block, int64 [blocks]; block b holds documents [first[b], first[b + 1])."""
    lengths = layout_lengths(tokens)
    if packing == "best_fit":
        spans = zip(first[:-1].tolist(), first[1:].tolist())
        return np.array([_best_fit_count(lengths[a:b], seq_len) for a, b in spans], dtype=np.int64)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    return -(-np.diff(ends[first]) // seq_len)


def packing_of(packing: str, tokens: np.ndarray, first: np.ndarray, seq_len: int) -> Packing:
    """The windows of the blocks [first[b], first[b + 1]) of documents with `tokens` ids each."""
    kind = BestFit if packing == "best_fit" else Cut
    return kind(layout_lengths(tokens), first, seq_len)


class Cut:
    """Documents end to end, cut every seq_len inputs."""

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

    def pieces(self, windows: np.ndarray) -> Pieces:
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
        return Pieces(row, column, document, skip, length)


class BestFit:
    """Whole documents where they fit; each block is packed when one of its windows is first asked for."""

    def __init__(self, lengths: np.ndarray, first: np.ndarray, seq_len: int) -> None:
        spans = zip(first[:-1].tolist(), first[1:].tolist())
        counts = [_best_fit_count(lengths[a:b], seq_len) for a, b in spans]
        self._ends = np.cumsum(counts)
        self.windows = int(self._ends[-1]) if counts else 0
        self.seq_len = seq_len
        self._lengths, self._first = lengths, first
        self._packed: dict[int, tuple[np.ndarray, Pieces]] = {}

    def pieces(self, windows: np.ndarray) -> Pieces:
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
            return Pieces(*(np.zeros(0, dtype=np.int64) for _ in range(5)))
        columns = [np.concatenate(column) for column in zip(*parts)]
        order = np.argsort(columns[0], kind="stable")
        return Pieces(*(column[order] for column in columns))

    def _block(self, block: int) -> tuple[np.ndarray, Pieces]:
        if block not in self._packed:
            span = self._lengths[self._first[block] : self._first[block + 1]]
            self._packed[block] = _best_fit(span, self.seq_len)
        return self._packed[block]


def _best_fit(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, Pieces]:
    """(pointers, pieces) of one block: window w has pieces [pointers[w], pointers[w + 1])."""
    full, rest = np.divmod(lengths, seq_len)
    document, ordinal = _expand(np.zeros_like(full), full)
    window = np.arange(len(document))
    pieces = [(window, np.zeros_like(window), document, ordinal * seq_len, np.full_like(window, seq_len))]
    rests = np.flatnonzero(rest)
    rests = rests[np.argsort(-rest[rests], kind="stable")]
    windows, columns = _place(rest[rests].tolist(), seq_len)
    skips = full[rests] * seq_len
    pieces.append(
        (np.array(windows, np.int64) + len(window), np.array(columns, np.int64), rests, skips, rest[rests])
    )
    row, column, document, skip, length = (np.concatenate(x) for x in zip(*pieces))
    order = np.lexsort((column, row))
    pointers = np.concatenate(([0], np.cumsum(np.bincount(row)))).astype(np.int64)
    return pointers, Pieces(row[order], column[order], document[order], skip[order], length[order])


def _place(sizes: list[int], seq_len: int) -> tuple[list[int], list[int]]:
    """(window, column) of each size, descending: into the fullest open window with room, else a new one."""
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
    full, rest = np.divmod(lengths, seq_len)
    windows, _ = _place(np.sort(rest[rest > 0])[::-1].tolist(), seq_len)
    return int(full.sum()) + (max(windows) + 1 if windows else 0)


def _expand(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) for every j in [begin[i], end[i]), in order."""
    counts = end - begin
    which = np.repeat(np.arange(len(counts)), counts)
    offsets = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - (offsets - begin)[which]
