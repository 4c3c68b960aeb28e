"""The documents of packed rows, and where their tokens go when the middle of some is moved behind their end.

Shapes are [rows, columns]: a row's inputs and, in a last column, the target of the last input.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MARKS = 3
"""A moved piece has a mark before its prefix, its suffix and its middle."""


@dataclass(frozen=True)
class Pieces:
    """The part of one document that lies in a row; a separator is a piece of its own.

    begin: the first column of the piece that each column is in, int64.
    length: the length of that piece, int64.
    is_text: whether the column is no separator, bool.
    """

    begin: Tensor
    length: Tensor
    is_text: Tensor

    @classmethod
    def of(cls, ids: Tensor, following: Tensor, eos: int) -> Pieces:
        """Find the pieces of `ids`; `following` is as in a batch. Where a document was cut, another one may
        begin without a separator: there the next token is not the one that follows.
        """
        separator = ids == eos
        starts = separator.clone()
        starts[:, 0] = True
        starts[:, 1:] |= separator[:, :-1] | ((following >= 0) & (following != ids[:, 1:]))
        columns = torch.arange(ids.shape[1], device=ids.device)
        number = starts.to(torch.int64).cumsum(dim=1) - 1
        lengths = torch.zeros_like(ids).scatter_add_(1, number, torch.ones_like(ids))
        begin = torch.where(starts, columns, 0).cummax(dim=1).values
        return cls(begin, lengths.gather(1, number), ~separator)

    def at_begin(self, values: Tensor) -> Tensor:
        """Return for each column what `values` has at the first column of its piece."""
        return values.gather(1, self.begin)

    @cached_property
    def columns(self) -> Tensor:
        return torch.arange(self.begin.shape[1], device=self.begin.device).expand_as(self.begin)

    @cached_property
    def is_first(self) -> Tensor:
        return self.columns == self.begin

    @cached_property
    def is_last(self) -> Tensor:
        return self.columns == self.begin + self.length - 1


@dataclass(frozen=True)
class Moves:
    """How pieces are laid out anew; equal for all columns of a piece.

    pieces: the pieces.
    moved: whether the middle of the piece is moved behind its end, bool.
    suffix_first: whether its suffix then comes first, bool.
    one, other: where it is cut, 0 ≤ one ≤ other ≤ its length: the middle is [one, other).
    """

    pieces: Pieces
    moved: Tensor
    suffix_first: Tensor
    one: Tensor
    other: Tensor

    @cached_property
    def begin(self) -> Tensor:
        """The column that a piece begins at, behind the marks of the pieces before it."""
        moved = self.moved.to(torch.int64)
        return self.pieces.begin + MARKS * ((moved * self.pieces.is_first).cumsum(dim=1) - moved)

    def places(self) -> Tensor:
        """Return the column that each token goes to, which may be behind the row's end."""
        pieces, moved = self.pieces, self.moved
        inside = pieces.columns - pieces.begin
        middle = MARKS + pieces.length - self.other + inside
        suffix = 2 + inside - torch.where(self.suffix_first, self.other, self.other - self.one)
        prefix = torch.where(self.suffix_first, middle, 1 + inside)
        anew = torch.where(inside < self.one, prefix, torch.where(inside < self.other, middle, suffix))
        return self.begin + torch.where(moved, anew, inside)

    def marks(self, nowhere: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the columns of the marks of prefix, suffix and middle, at the first column of each moved
        piece; `nowhere` at other columns.
        """
        suffix_length = self.pieces.length - self.other
        before_suffix = 1 + torch.where(self.suffix_first, 0, self.one)
        found = (torch.zeros_like(self.one), before_suffix, before_suffix + 1 + suffix_length)
        there = self.moved & self.pieces.is_first
        prefix, suffix, middle = (torch.where(there, self.begin + at, nowhere) for at in found)
        return prefix, suffix, middle

    def ends(self) -> Tensor:
        """Return the column of the last token of each piece, once it is laid out."""
        return self.begin + self.pieces.length - 1 + MARKS * self.moved.to(torch.int64)
