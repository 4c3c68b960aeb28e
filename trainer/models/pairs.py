"""What objectives know of a model that embeds the two sides of a row. Imports no torch."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

TextPool = Literal["mean", "first", "last"]
Learnt = Literal["none", "scale", "scale_bias"]
LEARNT_COLUMNS: dict[str, int] = {"none": 0, "scale": 1, "scale_bias": 2}
"""`learnt` → the columns behind the embeddings in a model's output: log scale, bias."""


@runtime_checkable
class PoolsText(Protocol):
    """The config of a model that pools the hidden states of a text."""

    @property
    def pool(self) -> TextPool:
        """The mean of all hidden states of the text, the first one or the last one."""
        ...


@runtime_checkable
class EmbedsPairs(Protocol):
    """The config of a model whose output is float [rows, 2 · embedding + columns]: the embeddings of a row's
    two sides, not normalised, and then the row's copies of the learnt numbers.

    learnt: which numbers are learnt beside the embeddings; see `LEARNT_COLUMNS`.
    pool: which hidden states of a text its embedding is made of.
    """

    @property
    def learnt(self) -> Learnt: ...
    @property
    def pool(self) -> TextPool: ...
