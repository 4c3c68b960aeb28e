"""Which rank stored each piece of a tensor: a sum over the piece's places, for so a mesh numbers its ranks.

Where tp 2 cuts a tensor first and ZeRO each part in 3, and tp is the inner axis of the ranks, the piece at
place (t, z) is number 3·t + z, and rank 2·z + t stored it: a step of tp is 1, one of ZeRO is 2. Steps that
are not even are a list: of each part, how far its rank is from the first one's. So it is where replicas share
out what they save, by tp rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainer.checkpoint.pieces.cuts import Parts

Step = int | tuple[int, ...]
"""From the rank of one part to that of the next; or of each part, from the first one's."""


@dataclass(frozen=True)
class Cut:
    """How tensors are cut (`cuts`), and which rank stored each piece.

    rank: the first piece's.
    steps: one for each count in `parts`, in their order; None where no such sum fits.
    ranks: then of each piece; -1 where none had an element.
    each: elements of a part of the vector that is cut (`cuts`); 0 where tensors are cut.
    """

    parts: Parts
    rank: int = 0
    steps: tuple[Step, ...] | None = None
    ranks: tuple[int, ...] = ()
    each: int = 0

    def rank_of(self, number: int) -> int:
        """Return the rank that stored the piece of this number, of one that has an element."""
        if self.steps is None:
            return self.ranks[number]
        rank = self.rank
        for count, step in zip(reversed(self._counts), reversed(self.steps), strict=True):
            number, at = divmod(number, count)
            rank += at * step if isinstance(step, int) else step[at]
        return rank

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(count for counts in self.parts for count in counts)

    def to_json(self) -> dict[str, Any]:
        cut = {"parts": self.parts, "each": self.each} if self.each else {"parts": self.parts}
        if self.steps is None:
            return {**cut, "ranks": self.ranks}
        return {**cut, "rank": self.rank, "steps": self.steps}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cut":
        parts, each = tuple(tuple(counts) for counts in values["parts"]), values.get("each", 0)
        if "ranks" in values:
            return cls(parts, ranks=tuple(values["ranks"]), each=each)
        steps = tuple(step if isinstance(step, int) else tuple(step) for step in values["steps"])
        return cls(parts, values["rank"], steps, each=each)


def described(parts: Parts, ranks: Sequence[int], each: int = 0) -> Cut:
    """Return the cut whose pieces these ranks stored: by a sum, where one fits. For rank 0: O(pieces).

    ranks: of each piece; -1 where none had an element.
    each: as in `Cut`.
    """
    counts = [count for each in parts for count in each]
    steps: list[Step] = []
    unit = len(ranks)
    for count in counts:
        unit //= count
        steps.append(_step([ranks[at * unit] for at in range(count)]))
    cut = Cut(parts, ranks[0], tuple(steps), each=each)
    fits = all(rank in (-1, cut.rank_of(number)) for number, rank in enumerate(ranks))
    return cut if fits else Cut(parts, ranks=tuple(ranks), each=each)


def _step(ranks: Sequence[int]) -> Step:
    """ranks: of a dim's parts, the first of which has elements; -1: none has."""
    even = ranks[1] - ranks[0] if len(ranks) > 1 and ranks[1] >= 0 else 0
    if all(rank in (-1, ranks[0] + at * even) for at, rank in enumerate(ranks)):
        return even
    return tuple(rank - ranks[0] for rank in ranks)
