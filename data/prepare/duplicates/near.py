"""Near duplicates: pairs of documents that share a band of their signatures, and are similar enough.

The first document of each band is compared with all others of the band, by the share that has the other one:
it reads the signatures of its own documents from beginning to end, and a pair that shares many bands once.
"""

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.dedup import KEPT, bands
from data.prepare.cleaning.words import Hashes, mixed
from data.prepare.duplicates import exchange
from data.prepare.duplicates.shares import Share, output, signatures, signatures_at, write_rows
from data.prepare.preparation import Preparation
from data.prepare.units import Advance

# The step whose verdicts say which documents are exact duplicates.
MARKED = "same"
_AT_ONCE = 1 << 14


def send(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Send a key for each band of each document that is no exact duplicate, with the document's number."""
    if not output(preparation, share).exists():
        count, rows = bands(preparation.recipe.near_threshold)
        documents = _candidates(preparation, share, count * rows)
        keys = np.empty((len(documents), count), np.uint64)
        for at in range(0, len(documents), _AT_ONCE):
            some = documents[at : at + _AT_ONCE]
            keys[at : at + len(some)] = _keys(signatures_at(preparation, some, count * rows), count)
        exchange.send(preparation, share, (keys.ravel(),), np.repeat(documents, count))
    advance(-1)


def pair(preparation: Preparation, share: Share, advance: Advance) -> None:
    """Write the pairs int64 [pairs, 2] of a share: (one of its documents, an earlier one that is similar)."""
    if not output(preparation, share).exists():
        count, rows = bands(preparation.recipe.near_threshold)
        documents = _candidates(preparation, share, count * rows)
        pairs = np.stack([np.repeat(documents, count), exchange.answers(preparation, share)], axis=1)
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        similar = [np.empty((0, 2), np.int64)]
        for at in range(0, len(pairs), _AT_ONCE):
            some = pairs[at : at + _AT_ONCE]
            agree = _agreement(preparation, some, count * rows)
            similar.append(some[agree >= preparation.recipe.near_threshold])
        write_rows(output(preparation, share), np.concatenate(similar))
    advance(-1)


def _candidates(preparation: Preparation, share: Share, permutations: int) -> NDArray[np.int64]:
    """[candidates] the documents of a share that are no exact duplicates and have a signature."""
    kept = np.load(output(preparation, share, MARKED)) == KEPT
    at = 0
    for rows in signatures(preparation, share.first, share.end, permutations):
        for begin in range(0, len(rows), _AT_ONCE):
            some = rows[begin : begin + _AT_ONCE]
            kept[at : at + len(some)] &= some.any(axis=1)
            at += len(some)
    return share.first + np.flatnonzero(kept)


def _keys(found: NDArray[np.uint32], count: int) -> Hashes:
    """[documents, bands] one hash of each band's values and its number."""
    rows = found.shape[1] // count
    number = np.broadcast_to(np.arange(count, dtype=np.uint32), (len(found), count))
    by_band = found.reshape(len(found), count, rows)
    return mixed([number, *(by_band[:, :, row] for row in range(rows))])


def _agreement(preparation: Preparation, pairs: NDArray[np.int64], permutations: int) -> NDArray[np.float64]:
    """[pairs] in which share of their places the signatures of two documents agree."""
    agree = np.zeros(len(pairs))
    documents, place = np.unique(pairs, return_inverse=True)
    found = signatures_at(preparation, documents, permutations)
    left, right = place.reshape(-1, 2).T
    agree[:] = (found[left] == found[right]).mean(axis=1)
    return agree
