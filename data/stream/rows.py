"""Sequences as arrays, made in two steps: where the ids of many rows are, then the rows a few at a time.

The first step is whole-array arithmetic: dear to start and cheap a row. Making rows is the reverse, and is
fastest a few at a time, which stay in the processor's cache. So the loader locates many steps ahead and makes
one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import getitem
from typing import Any

import numpy as np

from data.stream.checks import Versions
from data.stream.era import NO_CLASS, Part, facts_of
from data.stream.packing.packing import Packing

NO_TOKEN = -1
"""What `following` holds where no token follows."""


@dataclass(frozen=True)
class SequenceRows:
    """Sequences as arrays, each int64.

    numbers [rows]: global sequence numbers.
    length [rows], or [rows, 2] where a sequence is two halves: inputs before the padding; 0 where the row is
        masked.
    tokens, following [rows, seq_len]: `following` is the token that follows each one in its document,
        NO_TOKEN where none does (padding, a masked sequence). Not to be written to: they may be views of one
        array, a column apart.
    positions, documents [rows, seq_len]: with document_mask, else None: the place inside the document, and
        which document of the row; the padding is a document of its own.
    label [rows]: where each row is of one document, else None: its class, NO_CLASS where none is stated or
        the row is masked.
    marks, following_marks [rows, seq_len]: where ids have marks, else None: the mark of each token, and of
        the token that follows it; 0 where there is none (a separator, padding, a masked sequence).
    partner, partner_following [rows, seq_len]: with partners, else None: another sequence for each, as
        `tokens` and `following`.
    """

    numbers: np.ndarray
    length: np.ndarray
    tokens: np.ndarray
    following: np.ndarray
    positions: np.ndarray | None = None
    documents: np.ndarray | None = None
    label: np.ndarray | None = None
    marks: np.ndarray | None = None
    following_marks: np.ndarray | None = None
    partner: np.ndarray | None = None
    partner_following: np.ndarray | None = None

    def named(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the arrays `names` that there are."""
        return {name: array for name in names if (array := getattr(self, name)) is not None}


@dataclass(frozen=True)
class LocatedRows:
    """Where the ids of some sequences are; made by `join`, read by `rows`.

    A sequence is one row, or two, side by side (`parts`). A row is `columns` + 1 ids: those of its fragments
    and, around them, separators. With partners there are as many sequences again, which come after all
    others. Fragments are in the order of the rows, arrays are int64.

    numbers, source: global number and source of each sequence but the partners', [sequences].
    labels: the class of its document, [sequences]; None where sequences are not of one document each.
    media: the first byte of its picture in the shard, the length (0 where the sequence is masked) and the
        CRC-32, [3, sequences]; None without pictures. With pictures a sequence is one fragment.
    packing: how documents fill sequences.
    columns: inputs of a row.
    eos, dtype: the separator; type of the ids in the shards.
    views: the shard of each fragment, as bytes, [fragments].
    reads: three rows [3, fragments]: separators between the fragment before and this one, the first byte of
        the ids in the shard, and the byte after them.
    begin, end: the fragment's place among the ids of all rows, [fragments].
    pointers: row r has fragments [pointers[r], pointers[r + 1]), [rows + 1].
    starts: the fragment's first input, as row · columns + column, [fragments].
    inputs: inputs of each row that a token follows: 0 where it is masked, [rows].
    short: rows with fewer inputs than columns.
    masked: rows of sequences that hold a damaged document, or whose partner does, and of their partners.
    separated: inputs, as row · columns + column, that end a document where the next column is inside another
        document (one that was cut): a separator follows them, and is not among the ids.
    versions: (shard, version of its bytes when the documents were checked) for each shard of each era.
    """

    numbers: np.ndarray
    source: np.ndarray
    labels: np.ndarray | None
    media: np.ndarray | None
    packing: type[Packing]
    columns: int
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
        packing: type[Packing],
        eos: int,
        dtype: np.dtype,
        partners: bool = False,
    ) -> LocatedRows:
        """The sequences `numbers`, int64 [sequences], from parts that hold each of them once, and each one's
        partner where there are `partners`.
        """
        halves, count, columns = packing.parts, len(numbers), packing.columns(seq_len)
        rows = count * (1 + partners) * halves
        source, labels, media = facts_of(parts, count * (1 + partners), halves)
        arrays, views, damaged = [], [], []
        for part in parts:
            spans, found = part.spans, part.spans.fragments
            sequence = part.rows[found.row // halves]
            row = sequence * halves + found.row % halves
            cut = (found.opens == 0) & (found.column > 0)
            arrays.append((row, found.column, found.length, cut, spans.first_byte, spans.ids, spans.column))
            views += spans.views
            damaged.append(sequence[spans.damaged])
        joined = [np.concatenate(column) for column in zip(*arrays)]
        if len(parts) > 1:
            order = np.argsort(joined[0], kind="stable")
            joined, views = [column[order] for column in joined], [views[i] for i in order.tolist()]
        row, column, length, cut, first_byte, ids, at = joined
        begin = row * (columns + 1) + at
        gap = np.diff(begin, prepend=0)
        gap[1:] -= ids[:-1]
        blank = np.unique(np.concatenate(damaged) % count)
        masked = np.concatenate([blank + i * count for i in range(1 + partners)])
        labels[masked] = NO_CLASS
        if media is not None:
            media[1, blank] = 0
        masked = (masked[:, None] * halves + np.arange(halves)).ravel()
        inputs = np.bincount(row, length, rows).astype(np.int64)
        inputs[masked] = 0
        return cls(
            numbers=numbers,
            source=source[:count],
            labels=labels[:count] if packing.alone else None,
            media=None if media is None else media[:, :count],
            packing=packing,
            columns=columns,
            eos=eos,
            dtype=dtype,
            views=views,
            reads=np.stack((gap, first_byte, first_byte + ids * dtype.itemsize)),
            begin=begin,
            end=begin + ids,
            pointers=np.searchsorted(row, np.arange(rows + 1)),
            starts=row * columns + column,
            inputs=inputs,
            short=np.flatnonzero(inputs < columns),
            masked=masked,
            separated=(row * columns + column - 1)[cut],
            versions=[version for part in parts for version in part.spans.versions],
        )

    @property
    def parts(self) -> int:
        """Rows of a sequence."""
        return self.packing.parts

    def unchanged(self) -> bool:
        """Whether the shards are as they were when their documents were checked. If so, all rows that were
        made before this call are made of checked bytes. RuntimeError where a shard has another length now.
        """
        return all(shard.version() == version for shard, version in self.versions)

    def rows(self, begin: int, end: int, *, document_mask: bool) -> SequenceRows:
        """Sequences [begin, end) as arrays."""
        parts, all_rows = self.parts, len(self.numbers) * self.parts
        first, last = begin * parts, end * parts
        length = self.inputs[first:last]
        tokens, following = self._ids(first, last)
        positions, documents = self._documents(first, last) if document_mask else (None, None)
        has_partners = len(self.inputs) > all_rows
        partner = self._ids(all_rows + first, all_rows + last) if has_partners else (None, None)
        made = SequenceRows(
            numbers=self.numbers[begin:end],
            length=length if parts == 1 else length.reshape(-1, parts),
            tokens=tokens,
            following=following,
            positions=positions,
            documents=documents,
            label=None if self.labels is None else self.labels[begin:end],
            partner=partner[0],
            partner_following=partner[1],
        )
        if not self.packing.marked:
            return made
        return replace(made, **with_marks(vars(made), self.columns, self.eos))

    def _ids(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, following) of rows [begin, end), as sequences."""
        a, b = self.pointers[begin], self.pointers[end]
        columns = self.columns + 1
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
        separated = _within(self.separated, begin * self.columns, end * self.columns)
        short = _within(self.short, begin, end)
        if separated.size or short.size:  # where documents are joined, few micro-batches
            following = following.copy()
            following.ravel()[separated] = self.eos
            inputs = self.inputs[begin:end]
            for row in short.tolist():  # faster than whole arrays, of a micro-batch as of thousands of rows
                following[row, inputs[row] :] = NO_TOKEN
        return self._sequences(tokens), self._sequences(following)

    def _documents(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, documents) of rows [begin, end), as sequences."""
        starts = self.starts[self.pointers[begin] : self.pointers[end]] - begin * self.columns
        positions, documents = _marked(starts, self.inputs[begin:end], self.columns)
        masked = _within(self.masked, begin, end)
        positions[masked], documents[masked] = np.arange(self.columns), 0
        if self.parts > 1:
            # A half is a text and its padding at most: documents 0 and 1 of the first, 2 and 3 of the second.
            documents += 2 * (np.arange(begin, end) % self.parts)[:, None]
        return self._sequences(positions), self._sequences(documents)

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        """Rows [rows, columns] as sequences [rows / parts, parts · columns]."""
        return rows if self.parts == 1 else rows.reshape(-1, self.parts * self.columns)


def with_marks(arrays: Mapping[str, Any], columns: int, eos: int) -> dict[str, np.ndarray]:
    """Rows of ids beside rows of their marks, [rows, 2 · columns], as two; see `SequenceRows`."""
    made = {name: arrays[name][:, :columns] for name in ("tokens", "following", "positions", "documents")}
    length = arrays["length"][:, 0]
    place = np.arange(columns)
    ends = (place == length[:, None] - 1) & (made["following"] == eos)
    marked = place < length[:, None]
    made["marks"] = np.where(marked & (place > 0), arrays["tokens"][:, columns:], 0)
    made["following_marks"] = np.where(marked & ~ends, arrays["following"][:, columns:], 0)
    return made | {"length": length}


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
