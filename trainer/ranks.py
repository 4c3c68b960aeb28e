"""Outcomes and errors that are the same on every rank, so that no rank waits for one that failed."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

# Notes on an error (`BaseException.add_note`), so that one fault is one event and one line on standard error.
ON_EVERY_RANK = "raised on every rank"  # rank 0 reports it
IN_EVENTS = "told in events.jsonl"  # likewise, and rank 0 has written the event already
BY_ANOTHER_RANK = "told by another rank"  # the rank that found the fault reports it

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
_KINDS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
    "BlockingIOError": BlockingIOError,
}


def on_every_rank(error: E) -> E:
    """Return the error with the note ON_EVERY_RANK, for `raise on_every_rank(…)`."""
    error.add_note(ON_EVERY_RANK)
    return error


def gather(value: Any) -> list[Any]:
    """Collect a small object of every rank, in rank order, on every rank. Collective."""
    import torch.distributed as dist  # here, for the files below need the notes alone

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    import torch

    cpu = torch.device("cpu")
    # Not all_gather_object, which unpickles each rank's object by itself: 20 ms a thousand ranks.
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device=cpu) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)], device=cpu))
    counts = torch.cat(sizes).tolist()
    widest = max(counts)
    whole = torch.empty(len(sizes), widest, dtype=torch.uint8, device=cpu)
    dist.all_gather(list(whole), torch.nn.functional.pad(data, (0, widest - len(data))))
    raw = whole.numpy().tobytes()
    return decoded([raw[widest * rank : widest * rank + size] for rank, size in enumerate(counts)])


def decoded(pickled: Sequence[bytes]) -> list[Any]:
    """Unpickle what each rank sent. Most ranks send the same None, text or number: that is done once."""
    known: dict[bytes, Any] = {}
    found = []
    for data in pickled:
        if data in known:
            found.append(known[data])
            continue
        value = pickle.loads(data)
        if value is None or isinstance(value, str | int | float):  # nobody can change it for another rank
            known[data] = value
        found.append(value)
    return found


def alone(value: Any) -> list[Any]:
    """`gather` of a single process."""
    return [value]


def one_line(error: Exception) -> str:
    """Return an error's text as one line; of a system error what failed and in which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Ranks:
    """This rank among all.

    gather: collects a small object of every rank, in rank order, on every rank. Collective.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = alone

    def together(self, action: Callable[[], T]) -> T:
        """Return this rank's result, where the action succeeded on every rank; else raise on every rank.

        A rank that failed raises its own error. The others raise the text of the first failed rank with its
        number: as a ValueError or BlockingIOError where it was one, else as a RuntimeError.

        Where all ranks failed with the same class and text, rank 0 reports it (note ON_EVERY_RANK). Else the
        first rank with each text reports it. Ranks that failed later with the same text, or not at all, get
        the note BY_ANOTHER_RANK.

        Only ValueError, RuntimeError and OSError are shared. The action itself must not call a collective.
        """
        return self._settle(action, of_the_run=False)

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Call the action on rank 0 alone; return its result, or raise its error, on every rank. Rank 0
        reports the error.
        """
        value = self._settle(lambda: action() if self.rank == 0 else None, of_the_run=True)
        return self.gather(value)[0]  # type: ignore[no-any-return]

    def _settle(self, action: Callable[[], T], *, of_the_run: bool) -> T:
        """`of_the_run`: a failure is the whole run's, and its text names no rank."""
        if self.world == 1:
            return action()
        result: T | None = None
        own: Exception | None = None
        try:
            result = action()
        except (ValueError, RuntimeError, OSError) as error:
            own = error
        failures = self.gather(None if own is None else (type(own).__name__, one_line(own)))
        failed = [rank for rank, failure in enumerate(failures) if failure is not None]
        if not failed:
            return result  # type: ignore[return-value]
        kind, text = failures[failed[0]]
        where = "" if of_the_run else f"rank {failed[0]}: "
        raised = own or _KINDS.get(kind, RuntimeError)(f"{where}{text}")
        if of_the_run or all(failure == failures[0] for failure in failures):
            on_every_rank(raised)
        elif own is None or failures.index(failures[self.rank]) < self.rank:
            raised.add_note(BY_ANOTHER_RANK)
        raise raised
