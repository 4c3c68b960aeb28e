"""The steps that a rank trains on, masked and ended alike on all ranks that read the same sequences.

The peers of a data rank (its tp, pp and cp ranks) each read the same sequences, maybe from a copy on a disk
of their own. A document that is damaged in one copy masks its sequences on the rank that reads this copy. Its
peers have to mask them as well, or they train on another input. Where damage ends the run, all ranks are to
leave at the same step, and one rank that found the damage is to report it.

A rank that finds nothing cannot know what its peers find, so the ranks have to exchange something at every
step; but not by a collective of its own. A rank reads one step ahead of the step that it trains on, and the
step's one reduction carries, beside the request to stop, whether any rank could not read the next step, or
has masked a sequence of it and not exchanged that yet. Where one has, and only there, all ranks exchange
their failures and masked sequences before they take that step:

    train on step 3, having read step 4     reduction: gradients' norm, loss, …, stop?, exchange?
    exchange? on some rank                  gather: failed reads, masked sequences of step 4
    train on step 4, having read step 5

The exchange is in the main thread, between two steps, so collectives keep their order under every backend.
The first step has none before it, and the ranks always exchange before it.

Sequences belong to one data rank each. Data ranks whose copies differ therefore mask what their own copies
cannot give; quarantine.jsonl lists the ranks.
"""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data.stream.batch import Batch
from trainer.ranks import Ranks
from trainer.watch.phases import STEP, Phases

Quarantined = MutableMapping[int, list[dict[str, Any]]]
"""Sequence → the damage that masks it, as `data.stream.stream.Stream.quarantined`."""


class Steps:
    """Iterates over the micro-batches of each step, as the peers agree on them.

    batches: the micro-batches of each step, as this rank reads them.
    quarantined: the damage in what this rank's reader masked; after an exchange, also in what its
        peers masked.
    ranks: this rank among all; alone, nothing is read ahead.
    masks_alike: other ranks read the same sequences, and mask the damaged ones.
    eos: id of the separator, which masked sequences are filled with; see `Batch.masked`.
    phases: told that a step begins, with the reading of its micro-batches.
    first: the number of the first step.

    What fails in reading is raised by the step that it belongs to, on every rank: see `Ranks.together`.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[Batch]],
        *,
        quarantined: Quarantined | None = None,
        ranks: Ranks | None = None,
        masks_alike: bool = False,
        eos: int = 0,
        phases: Phases | None = None,
        first: int = 1,
    ) -> None:
        self._batches = iter(batches)
        self._phases = phases or Phases()
        self._step = first
        self._quarantined: Quarantined = {} if quarantined is None else quarantined
        self._ranks = ranks or Ranks()
        self._masks_alike = masks_alike
        self._eos = eos
        self._ahead: Sequence[Batch] | Exception | None = None
        self._exchange_next = True  # before the step ahead, as some rank asked

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        return self

    def __next__(self) -> Sequence[Batch]:
        """Return the next step. Collective where some rank asked for an exchange."""
        self._phases.main.next(STEP, self._step)
        self._step += 1
        if self._ranks.world == 1:
            return next(self._batches)
        if self._ahead is None:
            self._ahead = self._read()
        if self._exchange_next:
            self._ranks.together(self._next)
            if self._masks_alike:
                self._exchange()
            self._exchange_next = False
        step, self._ahead = self._next(), self._read()
        return step

    @property
    def needs_exchange(self) -> bool:
        """Whether this rank could not read the step ahead, or has masked a sequence of it."""
        if isinstance(self._ahead, Exception):
            return not isinstance(self._ahead, StopIteration)
        return bool(self._masks_alike and self._quarantined and self._masked())

    def exchange_next(self, asked: bool) -> None:
        """Exchange before the next step, if `asked`: whether any rank `needs_exchange`, the same on all."""
        self._exchange_next = asked

    def restart(self, first: int = 1) -> None:
        """Begin anew with step `first`, after `batches` was moved: forget the step read ahead, and exchange
        before the next.
        """
        self._step = first
        self._ahead = None
        self._exchange_next = True

    def _read(self) -> Sequence[Batch] | Exception:
        try:
            return next(self._batches)
        except Exception as error:
            return error

    def _next(self) -> Sequence[Batch]:
        """Return the step ahead, or raise what failed in reading it."""
        if isinstance(self._ahead, Exception):
            raise self._ahead
        assert self._ahead is not None
        return self._ahead

    def _masked(self) -> dict[int, list[dict[str, Any]]]:
        numbers = (number for batch in self._next() for number in batch.sequences)
        return {number: self._quarantined[number] for number in numbers if number in self._quarantined}

    def _exchange(self) -> None:
        masked = self._masked()
        if not self._ranks.any(bool(masked)):
            return
        by_rank = self._ranks.gather(masked)
        ahead = self._next()
        for number in (number for batch in ahead for number in batch.sequences):
            found = [(rank, entry) for rank, masked in enumerate(by_rank) for entry in masked.get(number, ())]
            if found:
                self._quarantined[number] = _merged(found)
        self._ahead = [batch.masked(self._quarantined.keys(), eos=self._eos) for batch in ahead]


def _merged(found: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """List each damage once, with the `ranks` that found it, maybe in folders of different names."""
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for rank, entry in found:
        key = (PurePosixPath(entry["shard"]).name, entry["sample"], entry["offset"])
        ranks = merged.setdefault(key, {**entry, "ranks": []})["ranks"]
        ranks.append(rank)
    return list(merged.values())
