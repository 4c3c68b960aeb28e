"""Windows of one document alone: whole, as two crops, as its two texts, or as a text and its marks. What is
longer is left out.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from data.corpus.listing.blocks import Blocks
from data.stream.order import derive_key, hashes
from data.stream.packing.packing import Documents, Fragments


class One:
    """One document a window; see `Packing`.

    count_names: the counts of `data.corpus.listing.blocks` that are its windows: without pictures, with them.
    """

    count_names: ClassVar[tuple[str, str]] = ("filled", "pictures")
    parts: ClassVar[int] = 1
    alone: ClassVar[bool] = True
    marked: ClassVar[bool] = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self._all = documents
        self._taken = np.flatnonzero(self.takes(documents))
        self.windows = len(self._taken)
        self._columns = self.columns(seq_len)

    @classmethod
    def columns(cls, seq_len: int) -> int:
        """See `Packing`."""
        return seq_len // cls.parts

    @classmethod
    def count(cls, documents: Documents, seq_len: int) -> np.ndarray:
        """See `Packing`."""
        before = np.concatenate(([0], np.cumsum(cls.takes(documents))))
        return np.diff(before[documents.first])

    @classmethod
    def counted(cls, blocks: Blocks, seq_len: int, pictures: bool) -> np.ndarray | None:
        """See `Packing`."""
        return blocks[cls.count_names[pictures]]

    @staticmethod
    def takes(documents: Documents) -> np.ndarray:
        """Which documents have a window, bool [documents]."""
        return documents.lengths > 0

    def fragments(self, windows: np.ndarray) -> Fragments:
        """See `Packing`."""
        document = np.repeat(self._taken[windows], self.parts)
        begin, stop = self.texts(windows, document)
        length = np.minimum(1 + stop - begin, self._columns)
        column = np.zeros_like(document)
        return Fragments(np.arange(len(document)), column, document, begin, length, column + 1, stop)

    def texts(self, windows: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(begin, end) among its document's ids of the text of each part, int64 [windows · parts].

        document: of each part.
        """
        return np.zeros_like(document), self._all.lengths[document] - 1


class Pair(One):
    """The two texts of a document, each in a half of the window; see `Packing`."""

    count_names: ClassVar[tuple[str, str]] = ("pairs", "picture_pairs")
    parts: ClassVar[int] = 2

    @staticmethod
    def takes(documents: Documents) -> np.ndarray:
        """See `One.takes`."""
        return (documents.lengths > 0) & (documents.first_text >= 0)

    def texts(self, windows: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `One.texts`."""
        second = np.tile(np.array([False, True]), len(windows))
        between = self._all.first_text[document]
        return np.where(second, between, 0), np.where(second, self._all.lengths[document] - 1, between)


class Marked(One):
    """A document's ids, and beside them the marks of these ids: as many numbers again, which the document
    holds behind its ids. See `Packing`.
    """

    count_names: ClassVar[tuple[str, str]] = ("marked", "picture_marked")
    parts: ClassVar[int] = 2
    marked: ClassVar[bool] = True

    @classmethod
    def columns(cls, seq_len: int) -> int:
        """See `Packing`."""
        return seq_len

    @staticmethod
    def takes(documents: Documents) -> np.ndarray:
        """See `One.takes`."""
        return (documents.lengths > 0) & documents.marked

    def texts(self, windows: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `One.texts`."""
        ids = self._all.lengths[document] - 1
        begin = np.where(np.tile(np.array([False, True]), len(windows)), ids, 0)
        return begin, begin + ids


class Views(One):
    """Two crops of a document, each in a half of the window; see `Packing`.

    Of m ids, as many as the document has and a half holds, a crop takes at least half, at most all, each
    number as likely; then each place in the document is as likely. Drawn for each window and part from `key`.
    A crop ends as a document does: what follows it is not the text's next id but a separator.
    """

    parts: ClassVar[int] = 2

    def texts(self, windows: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `One.texts`."""
        ids = self._all.lengths[document] - 1
        most = np.minimum(ids, self._columns - 1)
        part = (2 * windows[:, None] + np.arange(2)).ravel()
        length = most - self._drawn("length", part, most // 2 + 1)
        begin = self._drawn("begin", part, ids - length + 1)
        return begin, begin + length

    def _drawn(self, name: str, part: np.ndarray, below: np.ndarray) -> np.ndarray:
        """A number in [0, below) for each part, int64; `below` is at least 1."""
        drawn = hashes(part, derive_key(self._all.key, name)) % below.astype(np.uint64)
        return drawn.astype(np.int64)
