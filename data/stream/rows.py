"""Sequences as arrays, made in two steps: where the ids of many rows are, then the rows a few at a time.

The first step is whole-array arithmetic: dear to start and cheap a row. Making rows is the reverse, and is
fastest a few at a time, which stay in the processor's cache. So the loader locates many steps ahead and makes
one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import getitem
from typing import Any, NamedTuple

import numpy as np

from data.stream.checks import Versions
from data.stream.era import IdSpans

NO_TOKEN = -1
"""What `following` holds where no token follows."""


@dataclass(frozen=True)
class SequenceRows:
    """Sequences as arrays, each int64.

    numbers [rows]: global sequence numbers.
    length [rows]: inputs before the padding; 0 where the row is masked.
    tokens, following [rows, seq_len]: `following` is the token that follows each one in its document,
        NO_TOKEN where none does (padding, a masked sequence). Not to be written to: they may be views of one
        array, a column apart.
    positions, documents [rows, seq_len]: with document_mask, else None: the place inside the document, and
        which document of the row; the padding is a document of its own.
    partner, partner_following [rows, seq_len]: with partners, else None: another sequence for each, as
        `tokens` and `following`.
    """

    numbers: np.ndarray
    length: np.ndarray
    tokens: np.ndarray
    following: np.ndarray
    positions: np.ndarray | None = None
    documents: np.ndarray | None = None
    partner: np.ndarray | None = None
    partner_following: np.ndarray | None = None

    def named(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the arrays `names` that there are."""
        return {name: array for name in names if (array := getattr(self, name)) is not None}


class Part(NamedTuple):
    """Some rows of a list of sequences, all of one era.

    rows: which ones; row i of `spans` is row rows[i] of the list, int64. The partner of row i of n is row
        n + i.
    source: the source of the sequences.
    spans: where their ids are.
    """

    rows: np.ndarray
    source: int
    spans: IdSpans


@dataclass(frozen=True)
class LocatedRows:
    """Where the ids of some sequences are; made by `join`, read by `rows`.

    A row is seq_len + 1 ids: those of its fragments and, around them, separators. With partners there are as
    many rows again, which come after all others. Fragments are in the order of the rows, arrays are int64.

    numbers, source: global number and source of each row but the partners', [rows].
    seq_len, eos, dtype: inputs of a row; the separator; type of the ids in the shards.
    views: the shard of each fragment, as bytes, [fragments].
    reads: three rows [3, fragments]: separators between the fragment before and this one, the first byte of
        the ids in the shard, and the byte after them.
    begin, end: the fragment's place among the ids of all rows, [fragments].
    pointers: row r has fragments [pointers[r], pointers[r + 1]), [rows + 1].
    starts: the fragment's first input, as row · seq_len + column, [fragments].
    inputs: inputs of each row that a token follows: 0 where it is masked, [rows].
    short: rows with fewer than seq_len inputs.
    masked: rows that hold a damaged document, or whose partner does, and the partners of such rows.
    separated: inputs, as row · seq_len + column, that end a document where the next column is inside another
        document (one that was cut): a separator follows them, and is not among the ids.
    versions: (shard, version of its bytes when the documents were checked) for each shard of each era.
    """

    numbers: np.ndarray
    source: np.ndarray
    seq_len: int
    eos: int
    dtype: np.dtype
    views: list[Any]
    reads: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    pointers: np.ndarray
    starts: np.ndarray
    inputs: np.ndarray
    short: np.ndarray
    masked: np.ndarray
    separated: np.ndarray
    versions: Versions

    @classmethod
    def join(
        cls,
        numbers: np.ndarray,
        parts: Sequence[Part],
        *,
        seq_len: int,
        eos: int,
        dtype: np.dtype,
        partners: bool = False,
    ) -> LocatedRows:
        """The rows of the sequences `numbers`, int64 [rows], from parts that hold each of them once, and each
        one's partner where there are `partners`.
        """
        rows = len(numbers) * (1 + partners)
        source = np.zeros(rows, dtype=np.int64)
        arrays, views, damaged = [], [], []
        for part in parts:
            spans, found = part.spans, part.spans.fragments
            source[part.rows] = part.source
            row = part.rows[found.row]
            arrays.append(
                (row, found.column, found.length, found.skip, spans.first_byte, spans.ids, spans.column)
            )
            views += spans.views
            damaged.append(row[spans.damaged])
        columns = [np.concatenate(column) for column in zip(*arrays)]
        if len(parts) > 1:
            order = np.argsort(columns[0], kind="stable")
            columns, views = [column[order] for column in columns], [views[i] for i in order.tolist()]
        row, column, length, skip, first_byte, ids, at = columns
        begin = row * (seq_len + 1) + at
        gap = np.diff(begin, prepend=0)
        gap[1:] -= ids[:-1]
        masked = np.unique(np.concatenate(damaged))
        if partners:
            masked = np.unique(masked % len(numbers))
            masked = np.concatenate((masked, masked + len(numbers)))
        inputs = np.bincount(row, length, rows).astype(np.int64)
        inputs[masked] = 0
        cut_behind_another = (skip > 0) & (column > 0)
        return cls(
            numbers=numbers,
            source=source[: len(numbers)],
            seq_len=seq_len,
            eos=eos,
            dtype=dtype,
            views=views,
            reads=np.stack((gap, first_byte, first_byte + ids * dtype.itemsize)),
            begin=begin,
            end=begin + ids,
            pointers=np.searchsorted(row, np.arange(rows + 1)),
            starts=row * seq_len + column,
            inputs=inputs,
            short=np.flatnonzero(inputs < seq_len),
            masked=masked,
            separated=(row * seq_len + column - 1)[cut_behind_another],
            versions=[version for part in parts for version in part.spans.versions],
        )

    def unchanged(self) -> bool:
        """Whether the shards are as they were when their documents were checked. If so, all rows that were
        made before this call are made of checked bytes. RuntimeError where a shard has another length now.
        """
        return all(shard.version() == version for shard, version in self.versions)

    def rows(self, begin: int, end: int, *, document_mask: bool) -> SequenceRows:
        """Rows [begin, end) as arrays."""
        numbers, length = self.numbers[begin:end], self.inputs[begin:end]
        tokens, following = self._ids(begin, end)
        positions = documents = partner = partner_following = None
        if document_mask:
            positions, documents = self._documents(begin, end)
        if len(self.inputs) > len(self.numbers):
            partner, partner_following = self._ids(len(self.numbers) + begin, len(self.numbers) + end)
        return SequenceRows(
            numbers, length, tokens, following, positions, documents, partner, partner_following
        )

    def _ids(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, following) of rows [begin, end)."""
        a, b = self.pointers[begin], self.pointers[end]
        columns = self.seq_len + 1
        fill = _Separators(self.eos, self.dtype)
        gap, first, last = self.reads[:, a:b].tolist()
        gap[0] = int(self.begin[a]) - begin * columns  # since the start of this row, not since the one before
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
        inputs = self.inputs[begin:end]
        separated = _within(self.separated, begin * self.seq_len, end * self.seq_len)
        short = _within(self.short, begin, end)
        if separated.size or short.size:  # few micro-batches, where documents are cut
            following = following.copy()
            following.ravel()[separated] = self.eos
            for row in short.tolist():
                following[row, inputs[row] :] = NO_TOKEN
        return tokens, following

    def _documents(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, documents) of rows [begin, end)."""
        starts = self.starts[self.pointers[begin] : self.pointers[end]] - begin * self.seq_len
        positions, documents = _marked(starts, self.inputs[begin:end], self.seq_len)
        masked = _within(self.masked, begin, end)
        positions[masked], documents[masked] = np.arange(self.seq_len), 0
        return positions, documents


class _Separators(dict[int, bytes]):
    """n → the bytes of n separators."""

    def __init__(self, eos: int, dtype: np.dtype) -> None:
        self._one = np.array(eos, dtype).tobytes()

    def __missing__(self, count: int) -> bytes:
        self[count] = self._one * count
        return self[count]


def _within(values: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The values in [begin, end), less `begin`."""
    return values[(values >= begin) & (values < end)] - begin


def _marked(starts: np.ndarray, inputs: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, documents), int64 [rows, seq_len].

    starts: first inputs of the fragments, as row · seq_len + column.
    inputs: of each row, those before its padding, int64 [rows].
    """
    rows = len(inputs)
    marks = np.zeros((rows, seq_len), dtype=np.int64)
    marks.ravel()[starts] = 1
    padded = np.flatnonzero(inputs < seq_len)
    marks[padded, inputs[padded]] = 1
    marks[:, 0] = 1
    columns = np.arange(seq_len)
    begin = np.maximum.accumulate(marks * columns, axis=1)
    return columns - begin, np.cumsum(marks, axis=1) - 1
