"""Sequences as arrays, made in two steps: a plan for many (whole-array arithmetic, once), then the rows.

A plan is dear to start and cheap a row; making rows is the reverse, and is fastest in pieces that stay in the
processor's cache. So the loader plans far ahead and makes one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import getitem
from typing import Any

import numpy as np

from data.stream.era import Era
from data.stream.pack import Pieces

NO_TOKEN = -1
"""What `following` holds where no token follows."""


@dataclass(frozen=True)
class SequenceRows:
    """Sequences as arrays, each int64.

    numbers [rows]: global sequence numbers.
    tokens, following [rows, seq_len]: `following` is the token that follows each one in its document,
        NO_TOKEN where none does (padding, a masked sequence). Not to be written to: they may be views of one
        array, a column apart.
    positions, documents [rows, seq_len]: with document_mask, else None: the place inside the document, and
        which document of the row; the padding is a document of its own.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    following: np.ndarray
    positions: np.ndarray | None
    documents: np.ndarray | None


class Planner:
    """Collects the pieces of a list of sequences, era by era, in any order; then `plan()`."""

    def __init__(self, numbers: np.ndarray, seq_len: int, eos: int, dtype: np.dtype) -> None:
        self.numbers, self.seq_len, self.eos, self.dtype = numbers, seq_len, eos, dtype
        self._arrays: list[tuple[np.ndarray, ...]] = []
        self._views: list[Any] = []
        self._masked: list[np.ndarray] = []
        self._source = np.zeros(len(numbers), dtype=np.int64)
        self._eras: list[tuple[Era, dict[int, int]]] = []

    def add(self, era: Era, pieces: Pieces, rows: np.ndarray, source: int) -> None:
        """The pieces of some rows, which are of one source; row i of `pieces` is row rows[i] of the plan."""
        self._source[rows] = source
        self._arrays.append(
            (rows[pieces.row], pieces.column, pieces.length, pieces.skip, *era.extents(pieces))
        )
        self._views += era.views_of(pieces.document)
        self._eras.append((era, era.checked))

    def mask(self, rows: np.ndarray) -> None:
        """These rows are damaged: they become separators of which none is counted."""
        self._masked.append(rows)

    def plan(self) -> Plan:
        """The plan of all rows."""
        arrays, views = [np.concatenate(columns) for columns in zip(*self._arrays)], self._views
        if len(self._arrays) > 1:
            order = np.argsort(arrays[0], kind="stable")
            arrays, views = [array[order] for array in arrays], [views[i] for i in order.tolist()]
        row, column, length, skip, first, ids, at = arrays
        width, columns = self.dtype.itemsize, self.seq_len + 1
        rows = len(self.numbers)
        pointers = np.searchsorted(row, np.arange(rows + 1))
        # Separators before each piece, since the piece before it ended.
        start = row * columns + at
        gap = np.diff(start, prepend=0)
        gap[1:] -= ids[:-1]
        counted = np.bincount(row, length, rows).astype(np.int64)
        masked = np.unique(np.concatenate(self._masked)) if self._masked else np.zeros(0, np.int64)
        counted[masked] = 0
        # A document's rest may stand behind another one's end, which a separator follows all the same.
        broken = (skip > 0) & (column > 0)
        return Plan(
            numbers=self.numbers,
            source=self._source,
            seq_len=self.seq_len,
            eos=self.eos,
            dtype=self.dtype,
            views=views,
            span=np.stack((gap, first, first + ids * width)),
            begin=start,
            end=start + ids,
            pointers=pointers,
            starts=row * self.seq_len + column,
            counted=counted,
            short=np.flatnonzero(counted < self.seq_len),
            masked=masked,
            separated=(row * self.seq_len + column - 1)[broken],
            eras=self._eras,
        )


@dataclass(frozen=True)
class Plan:
    """Where the ids of some sequences are. Made by `Planner`.

    A row is seq_len + 1 ids: its pieces' and, around them, separators. `source`: which source each row is
    from, int64 [rows]. `views`: the shard of each piece;
    `span`: the separators since the piece before, the piece's first byte and its end in the shard, int64
    [3, pieces]; `begin`, `end`: its place among the ids of all rows. `pointers`: row r has pieces
    [pointers[r], pointers[r + 1]). As row · seq_len + column: `starts`, the pieces' first inputs;
    `separated`, inputs that a separator follows though the next column is inside another document. `counted`:
    inputs of each row that a token follows, `short` the rows with fewer than seq_len; `masked`: rows emptied
    by damage. `eras`: those that the pieces are of, each with the versions of its shards that were checked.
    """

    numbers: np.ndarray
    source: np.ndarray
    seq_len: int
    eos: int
    dtype: np.dtype
    views: list[Any]
    span: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    pointers: np.ndarray
    starts: np.ndarray
    counted: np.ndarray
    short: np.ndarray
    masked: np.ndarray
    separated: np.ndarray
    eras: list[tuple[Era, dict[int, int]]]

    def holds(self) -> bool:
        """Whether the shards are still as they were when their documents were checked: if so, all rows made
        before this call are what was checked. RuntimeError where a shard has another length now.
        """
        return all(era.versions() == checked for era, checked in self.eras)

    def rows(self, begin: int, end: int, *, document_mask: bool) -> SequenceRows:
        """Rows [begin, end) as arrays."""
        a, b = self.pointers[begin], self.pointers[end]
        columns = self.seq_len + 1
        fill = _Separators(self.eos, self.dtype)
        gap, first, last = self.span[:, a:b].tolist()
        gap[0] = int(self.begin[a]) - begin * columns  # not since the row before
        # One join in C of all ids and the separators between. The slices live for this call only: thousands
        # of them kept for later would have Python's garbage collector walk the whole process again and again.
        ids_of = map(getitem, self.views[a:b], map(slice, first, last))
        parts: Iterator[Any] = chain.from_iterable(zip(map(fill.__getitem__, gap), ids_of))
        tail = fill[end * columns - int(self.end[b - 1])]
        raw = bytearray().join(chain(parts, (tail,)))
        ids = np.frombuffer(raw, self.dtype).reshape(end - begin, columns)
        if self.masked.size:
            ids[_within(self.masked, begin, end)] = self.eos
        # Converting is half of the work: once, for the tokens and what follows them.
        wide = ids.astype(np.int64)
        tokens, following = wide[:, :-1], wide[:, 1:]
        counted = self.counted[begin:end]
        separated = _within(self.separated, begin * self.seq_len, end * self.seq_len)
        short = _within(self.short, begin, end)
        if separated.size or short.size:  # few micro-batches, where documents are cut
            following = following.copy()
            following.ravel()[separated] = self.eos
            for row in short.tolist():
                following[row, counted[row] :] = NO_TOKEN
        numbers = self.numbers[begin:end]
        if not document_mask:
            return SequenceRows(numbers, tokens, following, None, None)
        starts = self.starts[a:b] - begin * self.seq_len
        positions, documents = _documents(starts, counted, self.seq_len)
        masked = _within(self.masked, begin, end)
        positions[masked], documents[masked] = np.arange(self.seq_len), 0
        return SequenceRows(numbers, tokens, following, positions, documents)


class _Separators(dict[int, bytes]):
    """n → the bytes of n separators."""

    def __init__(self, eos: int, dtype: np.dtype) -> None:
        self._one = np.array(eos, dtype).tobytes()

    def __missing__(self, count: int) -> bytes:
        self[count] = self._one * count
        return self[count]


def _within(values: np.ndarray, begin: int, end: int) -> np.ndarray:
    return values[(values >= begin) & (values < end)] - begin


def _documents(starts: np.ndarray, counted: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, documents), int64 [rows, seq_len], from where pieces start (row · seq_len + column)."""
    rows = len(counted)
    marks = np.zeros((rows, seq_len), dtype=np.int64)
    marks.ravel()[starts] = 1
    padded = np.flatnonzero(counted < seq_len)
    marks[padded, counted[padded]] = 1
    marks[:, 0] = 1
    columns = np.arange(seq_len)
    begin = np.maximum.accumulate(marks * columns, axis=1)
    return columns - begin, np.cumsum(marks, axis=1) - 1
