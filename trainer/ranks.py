"""Deciding together: an outcome that is the same on every rank, so that an error on one is no hang on the
others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

# Notes on an error (`BaseException.add_note`), so that one fault is one event and one line on standard error.
ON_EVERY_RANK = "raised on every rank"  # rank 0 reports it
TOLD = "told in events.jsonl"  # likewise, and rank 0 has written the event already
ELSEWHERE = "told by another rank"  # the rank that found the fault reports it

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
_KINDS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
    "BlockingIOError": BlockingIOError,
}


def on_every_rank(error: E) -> E:
    """The error with the note ON_EVERY_RANK, for `raise on_every_rank(…)`."""
    error.add_note(ON_EVERY_RANK)
    return error


def alone(value: Any) -> list[Any]:
    """`gather` of a single process."""
    return [value]


def one_line(error: Exception) -> str:
    """An error's text as one line; a system error as what failed and where."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Ranks:
    """This rank among all. `gather` collects a small object of every rank, in rank order, on every rank."""

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = alone

    def together(self, action: Callable[[], T]) -> T:
        """This rank's result, where the action succeeded on every rank; else an error on every rank.

        A rank that failed raises its own error, the others raise the first failed rank's with its number. Of
        ranks that failed with the same words the first is to say them, and so is rank 0 where all did: the
        errors bear the notes ELSEWHERE and ON_EVERY_RANK. The action itself must not call a collective.
        """
        return self._settle(action, everyones=False)

    def first(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; its result, or its error, on every rank. Rank 0 says it for all."""
        value = self._settle(lambda: action() if self.rank == 0 else None, everyones=True)
        return self.gather(value)[0]  # type: ignore[no-any-return]

    def _settle(self, action: Callable[[], T], *, everyones: bool) -> T:
        """`everyones`: a failure is the whole run's, whichever rank has it."""
        if self.world == 1:
            return action()
        result: T | None = None
        mine: Exception | None = None
        try:
            result = action()
        except (ValueError, RuntimeError, OSError) as error:
            mine = error
        told = self.gather(None if mine is None else (type(mine).__name__, one_line(mine)))
        failed = [rank for rank, failure in enumerate(told) if failure is not None]
        if not failed:
            return result  # type: ignore[return-value]
        kind, words = told[failed[0]]
        where = "" if everyones else f"rank {failed[0]}: "
        raised = mine or _KINDS.get(kind, RuntimeError)(f"{where}{words}")
        if everyones or all(failure == told[0] for failure in told):
            on_every_rank(raised)
        elif mine is None or told.index(told[self.rank]) < self.rank:
            raised.add_note(ELSEWHERE)
        raise raised
