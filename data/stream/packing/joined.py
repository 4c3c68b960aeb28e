"""Documents joined to fill windows: every id is a target once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from data.corpus.listing.blocks import Blocks
from data.stream.packing.packing import Documents, Fragments, expand


class Cut:
    """Documents end to end, cut every seq_len inputs; see `Packing`."""

    parts: ClassVar[int] = 1
    alone: ClassVar[bool] = False
    marked: ClassVar[bool] = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        lengths, first = documents.lengths, documents.first
        ends = np.concatenate(([0], np.cumsum(lengths)))
        windows = -(-np.diff(ends[first]) // seq_len)
        window_ends = np.cumsum(windows)
        # Each block starts at a whole window; the gap before the next one is the padding.
        shift = (window_ends - windows) * seq_len - ends[first[:-1]]
        self.windows = int(window_ends[-1]) if len(window_ends) else 0
        self.seq_len = seq_len
        self._lengths = lengths
        self._starts = ends[:-1] + np.repeat(shift, np.diff(first))

    @classmethod
    def columns(cls, seq_len: int) -> int:
        """See `Packing`."""
        return seq_len

    @staticmethod
    def count(documents: Documents, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        ends = np.concatenate(([0], np.cumsum(documents.lengths)))
        return -(-np.diff(ends[documents.first]) // seq_len)

    @classmethod
    def counted(cls, blocks: Blocks, seq_len: int, pictures: bool) -> np.ndarray | None:
        """See `Packing`."""
        return -(-blocks["inputs"] // seq_len)

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        begin = windows.astype(np.int64) * self.seq_len
        first = np.searchsorted(self._starts, begin, side="right") - 1
        last = np.searchsorted(self._starts, begin + self.seq_len - 1, side="right") - 1
        row, document = expand(first, last + 1)
        start = self._starts[document] - begin[row]
        skip = np.maximum(-start, 0)
        column = np.maximum(start, 0)
        length = np.minimum(self._lengths[document] - skip, self.seq_len - column)
        if length.size and length.min() <= 0:  # empty documents, and a block's end before its padding
            keep = length > 0
            row, column, document, skip, length = (x[keep] for x in (row, column, document, skip, length))
        return _fragments(self._lengths, row, column, document, skip, length)


class BestFit:
    """Whole documents where they fit; see `Packing`. A block is packed when one of its windows is first
    read.
    """

    parts: ClassVar[int] = 1
    alone: ClassVar[bool] = False
    marked: ClassVar[bool] = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self._ends = np.cumsum(self.count(documents, seq_len))
        self.windows = int(self._ends[-1]) if len(self._ends) else 0
        self.seq_len = seq_len
        self._lengths, self._first = documents.lengths, documents.first
        self._packed: dict[int, tuple[np.ndarray, Fragments]] = {}

    @classmethod
    def columns(cls, seq_len: int) -> int:
        """See `Packing`."""
        return seq_len

    @staticmethod
    def count(documents: Documents, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        lengths, first = documents.lengths, documents.first
        spans = zip(first[:-1].tolist(), first[1:].tolist())
        return np.array([_best_fit_count(lengths[a:b], seq_len) for a, b in spans], dtype=np.int64)

    @classmethod
    def counted(cls, blocks: Blocks, seq_len: int, pictures: bool) -> np.ndarray | None:
        """See `Packing`: which documents go together depends on the length of each."""
        return None

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        blocks = np.searchsorted(self._ends, windows, side="right")
        parts = []
        for block in np.unique(blocks).tolist():
            rows = np.flatnonzero(blocks == block)
            pointers, packed = self._block(block)
            local = windows[rows] - (self._ends[block - 1] if block else 0)
            which, index = expand(pointers[local], pointers[local + 1])
            document = packed.document[index] + self._first[block]
            parts.append(
                (rows[which], packed.column[index], document, packed.skip[index], packed.length[index])
            )
        if not parts:
            return Fragments(*(np.zeros(0, dtype=np.int64) for _ in range(7)))
        joined = [np.concatenate(column) for column in zip(*parts)]
        order = np.argsort(joined[0], kind="stable")
        return _fragments(self._lengths, *(column[order] for column in joined))

    def _block(self, block: int) -> tuple[np.ndarray, Fragments]:
        if block not in self._packed:
            span = self._lengths[self._first[block] : self._first[block + 1]]
            self._packed[block] = _best_fit(span, self.seq_len)
        return self._packed[block]


def _fragments(
    lengths: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    document: np.ndarray,
    skip: np.ndarray,
    length: np.ndarray,
) -> Fragments:
    """Fragments of documents that take `lengths` inputs each: one that begins its document begins with the
    document's separator.
    """
    opens = (skip == 0).astype(np.int64)
    return Fragments(row, column, document, skip, length, opens, lengths[document] - 1)


def _best_fit(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, Fragments]:
    """(pointers, fragments) of one block: window w has fragments [pointers[w], pointers[w + 1])."""
    full, rest = np.divmod(lengths, seq_len)
    document, ordinal = expand(np.zeros_like(full), full)
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
    found = (row[order], column[order], document[order], skip[order], length[order])
    return pointers, _fragments(lengths, *found)


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
