"""The interface of a way to pack: documents in, fragments in windows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from data.corpus.listing.blocks import Blocks


@dataclass(frozen=True)
class Documents:
    """The documents of a run of blocks, one block's after another.

    lengths: inputs that each takes: its ids and a separator, 0 for a document that takes no room, int64
        [documents].
    first: block b holds documents [first[b], first[b + 1]), int64 [blocks + 1].
    first_text: of a document of two texts, how many ids the first one has; -1 where there is one, int64
        [documents].
    marked: whether a document's ids have marks, as many numbers behind them, bool [documents].
    key: of the crops that are drawn.
    """

    lengths: np.ndarray
    first: np.ndarray
    first_text: np.ndarray
    marked: np.ndarray
    key: int


@dataclass(frozen=True)
class Fragments:
    """Parts of documents in windows; int64 [fragments] each, ordered by row, then column.

    row: the part of the list of windows that holds the fragment: window i of the list has the rows from
        `Packing.parts` · i on, one for each of its equal parts.
    column: the first of the row's inputs that the fragment takes.
    document: the fragment's document, as a place in the lengths that were packed.
    skip: the document's inputs before the fragment.
    length: inputs of the fragment.
    opens: whether the fragment's first input is a separator, 0 or 1; else it is the document's id `skip - 1`.
    stop: the id of the document, or the end of its ids, that the fragment's text ends before.
    """

    row: np.ndarray
    column: np.ndarray
    document: np.ndarray
    skip: np.ndarray
    length: np.ndarray
    opens: np.ndarray
    stop: np.ndarray


class Packing(Protocol):
    """The windows of some documents.

    windows: their number.
    parts: equal parts of a window, each laid out on its own.
    alone: is a window of one document alone, so that its padding must be hidden from the document?
    marked: is a window two rows of `seq_len`, the ids of a document and their marks? Else its parts are equal
        shares of `seq_len`.
    """

    windows: int
    parts: ClassVar[int]
    alone: ClassVar[bool]
    marked: ClassVar[bool]

    def __init__(self, documents: Documents, seq_len: int) -> None: ...

    @classmethod
    def columns(cls, seq_len: int) -> int:
        """Inputs of each part of a window."""

    @staticmethod
    def count(documents: Documents, seq_len: int) -> np.ndarray:
        """Windows of each block, int64 [blocks], without packing them where that can be told sooner."""

    @classmethod
    def counted(cls, blocks: Blocks, seq_len: int, pictures: bool) -> np.ndarray | None:
        """The same by the counts of the blocks alone; None where they do not tell.

        pictures: does a document without a picture take no room?
        """

    def fragments(self, windows: np.ndarray) -> Fragments:
        """The fragments in the given windows."""


def layout_lengths(tokens: np.ndarray) -> np.ndarray:
    """Inputs that documents of `tokens` ids take: one more than their ids; none where they are empty."""
    tokens = tokens.astype(np.int64)
    return tokens + (tokens > 0)


def expand(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) for every j in [begin[i], end[i]), in order."""
    counts = end - begin
    which = np.repeat(np.arange(len(counts)), counts)
    offsets = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - (offsets - begin)[which]
