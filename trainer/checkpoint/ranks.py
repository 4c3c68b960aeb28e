"""Deciding together: an outcome that is the same on every rank, so that an error on one is no hang on the
others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_KINDS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
    "BlockingIOError": BlockingIOError,
}


class ToldElsewhere(ValueError):
    """What rank 0 says for the whole run, on the other ranks: they leave as it does, without a word."""


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

        The rank that failed raises its own; the others raise the first failed rank's, with its number. The
        action itself must not call a collective.
        """
        result: T | None = None
        mine: Exception | None = None
        try:
            result = action()
        except (ValueError, RuntimeError, OSError) as error:
            mine = error
        told = self.gather(None if mine is None else (type(mine).__name__, one_line(mine)))
        if mine is not None:
            raise mine
        for rank, failure in enumerate(told):
            if failure is not None:
                raise _KINDS.get(failure[0], RuntimeError)(f"rank {rank}: {failure[1]}")
        return result  # type: ignore[return-value]

    def first(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; its result, or its error, on every rank."""
        value = self.together(lambda: action() if self.rank == 0 else None)
        return self.gather(value)[0]
