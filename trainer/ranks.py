"""Outcomes and errors that are the same on every rank, so that no rank waits for one that failed."""

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

# Notes on an error (`BaseException.add_note`), so that one fault is one event and one line on standard error.
ON_EVERY_RANK = "raised on every rank"  # rank 0 reports it
IN_EVENTS = "told in events.jsonl"  # likewise, and rank 0 has written the event already
BY_ANOTHER_RANK = "told by another rank"  # the rank that found the fault reports it

SHARED = (ValueError, RuntimeError, OSError)  # errors that a rank tells the others

T = TypeVar("T")
A = TypeVar("A")
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


class Wires(Protocol):
    """How ranks tell one another small values. All methods are collective, and return the same everywhere."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every rank, in rank order. Costs each rank O(ranks)."""

    def answer(self, value: Any, answers: Callable[[list[Any]], Sequence[Any]]) -> Any:
        """Return this rank's own of the answers that rank 0 has to the values of all, in rank order."""

    def tell(self, value: Any, rank: int) -> Any:
        """Return the value of `rank`; the others' are not looked at."""

    def least(self, number: int) -> int:
        """Return the least of all ranks' numbers."""

    def sum(self, number: int) -> int:
        """Return the sum of all ranks' numbers."""


class Collectives:
    """The wires between processes: torch's group of all ranks, on the CPU."""

    def gather(self, value: Any) -> list[Any]:
        import torch  # here, for the files below need the notes alone
        import torch.distributed as dist

        # Not all_gather_object, which unpickles each rank's object by itself: 20 ms a thousand ranks.
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(data)], device="cpu"))
        counts = torch.cat(sizes).tolist()
        widest = max(counts)
        whole = torch.empty(len(sizes), widest, dtype=torch.uint8, device="cpu")
        dist.all_gather(list(whole), torch.nn.functional.pad(data, (0, widest - len(data))))
        raw = whole.numpy().tobytes()
        return decoded([raw[widest * rank : widest * rank + size] for rank, size in enumerate(counts)])

    def answer(self, value: Any, answers: Callable[[list[Any]], Sequence[Any]]) -> Any:
        import torch.distributed as dist

        sent = _padded([pickle.dumps(value)], self._most)
        is_zero = dist.get_rank() == 0
        received = [sent[0].clone() for _ in range(dist.get_world_size())] if is_zero else None
        dist.gather(sent[0], received)
        raw = [one.numpy().tobytes() for one in received or ()]  # what follows a pickle's end is not read
        found = [pickle.dumps(one) for one in answers(decoded(raw))] if is_zero else [b""]
        back = _padded(found, self._most)
        own = back[0].clone()
        dist.scatter(own, back if is_zero else None)
        return pickle.loads(own.numpy().tobytes())

    def _most(self, number: int) -> int:
        return -self.least(-number)

    def tell(self, value: Any, rank: int) -> Any:
        import torch
        import torch.distributed as dist

        own = pickle.dumps(value) if dist.get_rank() == rank else b""
        size = torch.tensor([len(own)], device="cpu")
        dist.broadcast(size, rank)
        data = torch.frombuffer(bytearray(own or int(size)), dtype=torch.uint8)
        dist.broadcast(data, rank)
        return value if own else pickle.loads(data.numpy().tobytes())

    def least(self, number: int) -> int:
        return self._reduced(number, "MIN")

    def sum(self, number: int) -> int:
        return self._reduced(number, "SUM")

    def _reduced(self, number: int, how: str) -> int:
        import torch
        import torch.distributed as dist

        found = torch.tensor([number], device="cpu")
        dist.all_reduce(found, getattr(dist.ReduceOp, how))
        return int(found)


def _padded(pickled: Sequence[bytes], most: Callable[[int], int]) -> list[Any]:
    """Return each as a tensor of bytes, all as long as the longest of any rank. Collective: `most`."""
    import torch

    length = most(max(map(len, pickled)))
    return [torch.frombuffer(bytearray(one.ljust(length, b"\0")), dtype=torch.uint8) for one in pickled]


def decoded(pickled: Sequence[bytes]) -> list[Any]:
    """Unpickle what each rank sent. Most ranks send the same None, text, number or tuple: that
    is done once."""
    known: dict[bytes, Any] = {}
    found = []
    for data in pickled:
        if data in known:
            found.append(known[data])
            continue
        value = pickle.loads(data)
        with contextlib.suppress(TypeError):
            hash(value)  # only what nobody can change for another rank has one
            known[data] = value
        found.append(value)
    return found


def one_line(error: Exception) -> str:
    """Return an error's text as one line; of a system error what failed and in which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Ranks:
    """This rank among all. Every method is collective.

    wires: between the ranks; a single rank needs none.
    """

    rank: int = 0
    world: int = 1
    wires: Wires = field(default_factory=Collectives)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every rank, in rank order. Costs each rank O(ranks): see `tell` and `first`."""
        return [value] if self.world == 1 else self.wires.gather(value)

    def by_rank_zero(self, value: T, answers: Callable[[Sequence[T]], Sequence[A]]) -> A:
        """Return this rank's own of the answers that rank 0 has to the values of all, in rank order.

        answers: must not fail, for the others wait.
        """
        return answers([value])[0] if self.world == 1 else self.wires.answer(value, answers)  # type: ignore[no-any-return]

    def tell(self, value: T, rank: int = 0) -> T:
        """Return the value of `rank`, on every rank."""
        return value if self.world == 1 else self.wires.tell(value, rank)  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Whether the flag of some rank is set."""
        return flag if self.world == 1 else self.wires.least(not flag) == 0

    def all(self, flag: bool) -> bool:
        """Whether the flags of all ranks are set."""
        return not self.any(not flag)

    def sum(self, number: int) -> int:
        """Return the sum of all ranks' numbers."""
        return number if self.world == 1 else self.wires.sum(number)

    def first(self, value: T | None) -> tuple[int, T] | None:
        """Return the first rank whose value is not None, and the value; None where there is none."""
        if self.world == 1:
            return None if value is None else (0, value)
        rank = self.wires.least(self.world if value is None else self.rank)
        return None if rank == self.world else (rank, self.wires.tell(value, rank))

    def each_once(self, value: T) -> list[T]:
        """Return the values of all ranks that differ, each once, in order of the first rank that has it."""
        if self.world == 1:
            return [value]
        digests = self.gather(hashlib.sha256(pickle.dumps(value)).hexdigest())
        firsts = {digest: rank for rank, digest in reversed(list(enumerate(digests)))}
        return [self.tell(value, rank) for rank in sorted(firsts.values())]

    def together(self, action: Callable[[], T]) -> T:
        """Return this rank's result, where the action succeeded on every rank; else raise on every rank.

        A rank that failed raises its own error. The others raise the text of the first failed rank with its
        number: as a ValueError or BlockingIOError where it was one, else as a RuntimeError.

        Where all ranks failed with the same class and text, rank 0 reports it (note ON_EVERY_RANK). Else the
        first rank with each text reports it. Ranks that failed later with the same text, or not at all, get
        the note BY_ANOTHER_RANK.

        Only ValueError, RuntimeError and OSError are shared. The action itself must not call a collective.
        """
        if self.world == 1:
            return action()
        result: T | None = None
        own: Exception | None = None
        try:
            result = action()
        except SHARED as error:
            own = error
        if not self.any(own is not None):
            return result  # type: ignore[return-value]
        failures = self.gather(own and _failure(own))
        first = next(rank for rank, failure in enumerate(failures) if failure)
        kind, text = failures[first]
        raised = own or _raised(kind, f"rank {first}: {text}")
        if all(failure == failures[0] for failure in failures):
            on_every_rank(raised)
        elif own is None or failures.index(failures[self.rank]) < self.rank:
            raised.add_note(BY_ANOTHER_RANK)
        raise raised

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Call the action on rank 0 alone; return its result, or raise its error, on every rank. Rank 0
        reports the error.
        """
        if self.world == 1:
            return action()
        result: T | None = None
        own: Exception | None = None
        if self.rank == 0:
            try:
                result = action()
            except SHARED as error:
                own = error
        failure, value = self.tell((own and _failure(own), result))
        if not failure:
            return value  # type: ignore[return-value]
        raise on_every_rank(own or _raised(*failure))


def _failure(error: Exception) -> tuple[str, str]:
    return type(error).__name__, one_line(error)


def _raised(kind: str, text: str) -> Exception:
    return _KINDS.get(kind, RuntimeError)(text)
