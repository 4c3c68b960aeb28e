"""Shares: neighbouring documents of the corpus, a task each, and what the survey stored of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.words import Hashes
from data.prepare.preparation import Preparation, rename_into

# Of a unit's survey: [documents, 3] uint64 and [documents, permutations] uint32, without headers.
CONTENT, SIGNATURES = "content.bin", "minhash.bin"
HIGH, LOW, SIZE = 0, 1, 2
_BEGINS = "begins.npy"


@dataclass(frozen=True)
class Share:
    """One task of a step.

    number: of the share, from 0.
    size: documents in a share; the last one has what is left.
    total: documents in the corpus.
    step: the folder of the step that this is a task of.
    sent: the folder of the step that sent the keys whose answers this one reads.
    pairs: the folder of the step that wrote the pairs that this one reads.
    """

    number: int
    size: int
    total: int
    step: str = ""
    sent: str = ""
    pairs: str = ""
    is_remote = False

    @property
    def bytes(self) -> int:
        """The size of the work: documents, for which there is no better measure."""
        return self.end - self.first

    @property
    def count(self) -> int:
        """How many shares there are; keys are exchanged in as many parts."""
        return max(1, -(-self.total // self.size))

    @property
    def first(self) -> int:
        """The number of the share's first document in the corpus."""
        return self.number * self.size

    @property
    def end(self) -> int:
        """The number after that of its last document."""
        return min(self.first + self.size, self.total)

    @property
    def documents(self) -> NDArray[np.int64]:
        """[documents] their numbers."""
        return np.arange(self.first, self.end)


def folder(preparation: Preparation) -> Path:
    """Where the steps have their folders."""
    return preparation.scratch / "survey" / "duplicates"


def output(preparation: Preparation, share: Share, step: str = "") -> Path:
    """The file of a share in its step's folder, or in that of another step."""
    return folder(preparation) / (step or share.step) / f"{share.number:06d}.npy"


def write_begins(preparation: Preparation, documents: list[int]) -> None:
    """Store where each unit's documents begin in the corpus. `documents`: how many each has, in order."""
    begins = np.concatenate([[0], np.cumsum(documents, dtype=np.int64)])
    write_rows(folder(preparation) / _BEGINS, begins)


def begins_of(preparation: Preparation) -> NDArray[np.int64]:
    """[units + 1] the number of each unit's first document; last, how many documents there are."""
    return np.load(folder(preparation) / _BEGINS, mmap_mode="r")


def write_rows(path: Path, rows: NDArray[Any]) -> None:
    """Create a .npy file in one step; attempts at the same time do not meet."""
    with rename_into(path) as draft, open(draft, "wb") as file:
        np.save(file, rows, allow_pickle=False)


def contents(preparation: Preparation, share: Share) -> Hashes:
    """[3, documents] of a share: HIGH and LOW of the content's hash, SIZE of the text in characters."""
    parts = [
        rows[first:end]
        for rows, first, end in _stored(preparation, share.first, share.end, CONTENT, np.uint64, 3)
    ]
    return np.concatenate([*parts, np.empty((0, 3), np.uint64)]).T


def signatures(
    preparation: Preparation, first: int, end: int, permutations: int
) -> Iterator[NDArray[np.uint32]]:
    """Yield the signatures [some, permutations] of the documents [first, end), mapped, unit by unit."""
    for rows, begin, stop in _stored(preparation, first, end, SIGNATURES, np.uint32, permutations):
        yield rows[begin:stop]


def signatures_at(
    preparation: Preparation, documents: NDArray[np.int64], permutations: int
) -> NDArray[np.uint32]:
    """[documents, permutations] the signatures of single documents, whose numbers ascend."""
    found = np.empty((len(documents), permutations), np.uint32)
    at = 0
    while at < len(documents):
        first = int(documents[at])
        ((rows, place, _),) = _stored(preparation, first, first + 1, SIGNATURES, np.uint32, permutations)
        here = int(np.searchsorted(documents, first - place + len(rows)))
        found[at:here] = rows[documents[at:here] - (first - place)]
        at = here
    return found


def _stored(
    preparation: Preparation, first: int, end: int, name: str, dtype: Any, width: int
) -> Iterator[tuple[NDArray[Any], int, int]]:
    """Yield (rows of a unit, mapped; first, end of the asked documents in them), unit by unit."""
    begins = begins_of(preparation)
    unit = int(np.searchsorted(begins, first, side="right")) - 1
    while first < end:
        begin, stop = int(begins[unit]), min(end, int(begins[unit + 1]))
        if stop > first:
            path = preparation.scratch / "survey" / f"{unit:06d}.{name}"
            rows = np.memmap(path, dtype, "r").reshape(-1, width)
            yield rows, first - begin, stop - begin
            first = stop
        unit += 1
