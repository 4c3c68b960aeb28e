"""Which documents are not the first of all that pairs connect: a graph's components, two exchanges a round.

Pairs (later, earlier) become stars around the first document of each component, by the alternating algorithm
of Kiveris et al., "Connected Components in MapReduce and Beyond" (2014):

    large   (a, b) → (a, the least neighbour of b, or b)
    small   (a, b) → (b, the least neighbour of a), unless b is that

until neither changes a pair: about log₂ of the longest chain in rounds. Pairs stay with their share, which
gets no more of them; only documents and their least neighbours travel.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.words import mixed
from data.prepare.duplicates import exchange
from data.prepare.duplicates.shares import Share, output, write_rows
from data.prepare.preparation import Preparation, write_json
from data.prepare.units import Advance


def send_large(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Send both documents of each pair, with the earlier one."""
    if not output(preparation, share).exists():
        later, earlier = np.load(output(preparation, share, share.pairs)).T
        _send(preparation, share, np.concatenate([later, earlier]), np.concatenate([earlier, earlier]))
    advance(-1)


def large(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Write the pairs after "large"."""
    if not _changed(preparation, share).exists():
        later, earlier = np.load(output(preparation, share, share.pairs)).T
        least = exchange.answers(preparation, share)[len(later) :]
        _write(preparation, share, np.stack([later, least], axis=1), int((least != earlier).sum()))
    advance(-1)


def send_small(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Send the later document of each pair, with the earlier one."""
    if not output(preparation, share).exists():
        later, earlier = np.load(output(preparation, share, share.pairs)).T
        _send(preparation, share, later, earlier)
    advance(-1)


def small(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Write the pairs after "small"."""
    if not _changed(preparation, share).exists():
        later, earlier = np.load(output(preparation, share, share.pairs)).T
        least = exchange.answers(preparation, share)
        moved = least != earlier
        pairs = np.stack([np.where(moved, earlier, later), least], axis=1)
        _write(preparation, share, pairs, int(moved.sum()))
    advance(-1)


def changed(preparation: Preparation, shares: Iterable[Share]) -> bool:
    """Has a step changed any pair of any share?"""
    return any(json.loads(_changed(preparation, share).read_bytes()) for share in shares)


def send_later(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Sort the later documents of a share's pairs by the shares that they are in."""
    if not output(preparation, share).exists():
        later = np.unique(np.load(output(preparation, share, share.pairs))[:, 0])
        exchange.write_numbers(output(preparation, share), later, share.size, share.count)
    advance(-1)


def _send(
    preparation: Preparation, share: Share, documents: NDArray[np.int64], values: NDArray[np.int64]
) -> None:
    exchange.send(
        preparation, share, (mixed([documents.view(np.uint64)]),), values
    )  # one-to-one: no two share a key


def _write(preparation: Preparation, share: Share, pairs: NDArray[np.int64], moved: int) -> None:
    write_rows(output(preparation, share), np.unique(pairs, axis=0))
    write_json(_changed(preparation, share), moved)


def _changed(preparation: Preparation, share: Share) -> Path:
    return output(preparation, share).with_suffix(".json")
