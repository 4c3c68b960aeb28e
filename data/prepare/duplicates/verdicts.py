"""Verdicts: which documents stay, a file for each share; and the same for the documents of a unit."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.dedup import NEAR, STEPS
from data.prepare.duplicates import exchange
from data.prepare.duplicates.shares import SIZE, Share, begins_of, contents, folder, output, write_rows
from data.prepare.preparation import Preparation, write_json
from data.prepare.tally import Tally
from data.prepare.units import Advance, Unit

STEP = "verdicts"
_FOUND = "found.json"


def decide(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Write the share's verdicts, uint8 [documents] (KEPT, SAME or NEAR), and beside them the counts."""
    path = output(preparation, share)
    if not path.with_suffix(".json").exists():
        verdicts = np.load(output(preparation, share, "same"))
        if share.pairs:
            for other in range(share.count):
                later = folder(preparation) / share.pairs / f"{other:06d}.npy"
                verdicts[
                    exchange.read_part(later, share.number, share.count)[:, 0] - np.uint64(share.first)
                ] = NEAR
        sizes, tally = contents(preparation, share)[SIZE], Tally()
        for verdict, step in STEPS.items():
            if (mine := verdicts == verdict).any():
                tally.add(step, int(sizes[mine].sum()), documents=int(mine.sum()))
        write_rows(path, verdicts)
        write_json(path.with_suffix(".json"), tally.as_dict())
    advance(-1)


def store(preparation: Preparation, shares: Iterable[Share]) -> None:
    """Store how many duplicates there are, and how to find a verdict; once this is there, all of them are."""
    tally, size = Tally(), 1
    for share in shares:
        tally.merge(json.loads(output(preparation, share).with_suffix(".json").read_bytes()))
        size = share.size
    write_json(folder(preparation) / _FOUND, {"size": size, "tally": tally.as_dict()})


def are_stored(preparation: Preparation) -> bool:
    """Have the duplicates been found?"""
    return (folder(preparation) / _FOUND).exists()


def found(preparation: Preparation) -> dict[str, Any]:
    """How many documents are duplicates, as `Tally.as_dict`."""
    return dict(json.loads((folder(preparation) / _FOUND).read_bytes())["tally"])


def of_unit(preparation: Preparation, unit: Unit) -> NDArray[np.uint8]:
    """[documents] the verdicts of a unit's documents, in the order of its spool."""
    size = json.loads((folder(preparation) / _FOUND).read_bytes())["size"]
    first, end = begins_of(preparation)[unit.number : unit.number + 2].tolist()
    parts = [np.empty(0, np.uint8)]
    for number in range(first // size, -(-end // size)):
        share = np.load(folder(preparation) / STEP / f"{number:06d}.npy", mmap_mode="r")
        parts.append(share[max(0, first - number * size) : end - number * size])
    return np.concatenate(parts)
