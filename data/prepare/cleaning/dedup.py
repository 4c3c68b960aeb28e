"""Exact and near duplicates over the whole corpus, found from the files that each unit's survey has stored.

Of equal documents, the first in the order of the sources stays. Near duplicates are found as FineWeb and
others do: MinHash (Broder 1997) of word 5-grams, and bands (locality-sensitive hashing). Here the similarity
of each pair is checked before it counts, and of all documents that pairs connect, the first stays.

Memory: 30 bytes a document in the main process for near, 25 for exact; signatures stay on disk.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.words import Hashes, hashes, mixed, plain_words, runs
from data.prepare.tally import Tally

SHINGLE_WORDS = 5
PERMUTATIONS = 128
_RECALL = 0.95
_SEED = 20_240_501
# The verdicts in a unit's keep file: the document stays, or why it is left out.
KEPT, SAME, NEAR = 0, 1, 2
STEPS = {SAME: "removed.duplicate", NEAR: "removed.near_duplicate"}
# Rows of a unit's content file.
HIGH, LOW, SIZE = 0, 1, 2
_SORTED_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 16


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows in a band): the longest bands with which a pair of just this similarity is found in 95
    cases of 100.

    A pair of similarity s shares a band with probability 1 − (1 − s^rows)^bands (Leskovec, Rajaraman,
    Ullman, §3.4).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _RECALL:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1


def signature(text: str, permutations: int) -> NDArray[np.uint32] | None:
    """The MinHash signature [permutations] of a text; None where it is too short to have a run of words."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise ValueError(
            "--deduplicate near needs rensa, which is not installed: pip install rensa, or use exact"
        ) from None
    shingles = runs(hashes(plain_words(text)), SHINGLE_WORDS)
    if not len(shingles):
        return None
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, [0, len(shingles)], permutations, _SEED)
    return np.array(matrix.to_rows()[0], np.uint32)


def find(survey: Path, units: list[int], threshold: float | None) -> Tally:
    """Write each unit's keep file (uint8 [documents]: KEPT, SAME or NEAR); return the counts of duplicates.

    survey: the folder with the surveys' files.
    units: the units' numbers, in the order of the corpus.
    threshold: Jaccard similarity from which two documents are near; None finds exact duplicates only.
    """
    contents = [np.load(survey / f"{unit:06d}.content.npy", mmap_mode="r") for unit in units]
    begins = np.concatenate([[0], np.cumsum([content.shape[1] for content in contents])]).astype(np.int64)
    verdicts = np.zeros(begins[-1], np.uint8)
    _mark_same(contents, begins, verdicts)
    if threshold is not None:
        _mark_near(survey, units, begins, verdicts, threshold)
    tally = Tally()
    for unit, content, begin in zip(units, contents, begins):
        mine = verdicts[begin : begin + content.shape[1]]
        np.save(survey / f"{unit:06d}.keep.npy", mine, allow_pickle=False)
        for verdict, step in STEPS.items():
            if (mine == verdict).any():
                tally.add(
                    step, int(content[SIZE][mine == verdict].sum()), documents=int((mine == verdict).sum())
                )
    return tally


def _mark_same(contents: list[Hashes], begins: NDArray[np.int64], verdicts: NDArray[np.uint8]) -> None:
    """Mark all but the first of equal 128-bit hashes, by sorting a share of the hashes at a time."""
    shares = int(begins[-1]) // _SORTED_AT_ONCE + 1
    for share in range(shares):
        chosen = [np.flatnonzero(content[HIGH] % np.uint64(shares) == share) for content in contents]
        places = np.concatenate([at + begin for at, begin in zip(chosen, begins)])
        high, low = (
            np.concatenate([content[row][at] for content, at in zip(contents, chosen)]) for row in (HIGH, LOW)
        )
        order = np.lexsort((low, high))  # stable: equal hashes stay in the order of the corpus
        same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        verdicts[places[order][1:][same]] = SAME


def _mark_near(
    survey: Path, units: list[int], begins: NDArray[np.int64], verdicts: NDArray[np.uint8], threshold: float
) -> None:
    count, rows = bands(threshold)
    signatures = _joined(survey, units, (int(begins[-1]), count * rows))
    candidates = np.flatnonzero((verdicts == KEPT) & signatures.any(axis=1))
    first = np.arange(begins[-1])  # union-find: a document → an earlier one that it is connected with
    for band in range(count):
        keys = _band_keys(signatures, candidates, band * rows, rows)
        order = np.argsort(keys, kind="stable")
        heads = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
        leaders = candidates[order][np.maximum.accumulate(np.where(heads, np.arange(len(order)), 0))]
        for leader, other in _similar(signatures, leaders[~heads], candidates[order][~heads], threshold):
            _unite(first, leader, other)
    verdicts[candidates[first[candidates] != candidates]] = NEAR


def _joined(survey: Path, units: list[int], shape: tuple[int, int]) -> NDArray[np.uint32]:
    """All units' signatures [documents, permutations] as one mapped file, so that any row can be read."""
    with open(survey / "signatures.bin", "wb") as file:
        for unit in units:
            np.load(survey / f"{unit:06d}.minhash.npy", mmap_mode="r").tofile(file)
    if not shape[0]:
        return np.empty(shape, np.uint32)
    return np.memmap(survey / "signatures.bin", np.uint32, "r", shape=shape)


def _band_keys(
    signatures: NDArray[np.uint32], candidates: NDArray[np.int64], start: int, rows: int
) -> Hashes:
    """[candidates] one hash for each candidate, of its `rows` values from `start` on."""
    keys = np.empty(len(candidates), np.uint64)
    for at in range(0, len(candidates), _PAIRS_AT_ONCE):
        values = signatures[candidates[at : at + _PAIRS_AT_ONCE], start : start + rows]
        keys[at : at + len(values)] = mixed(values.T)
    return keys


def _similar(
    signatures: NDArray[np.uint32], leaders: NDArray[np.int64], others: NDArray[np.int64], threshold: float
) -> Iterator[tuple[int, int]]:
    """Yield the pairs whose signatures agree in at least a share `threshold` of their places."""
    for at in range(0, len(leaders), _PAIRS_AT_ONCE):
        left, right = leaders[at : at + _PAIRS_AT_ONCE], others[at : at + _PAIRS_AT_ONCE]
        agree = (signatures[left] == signatures[right]).mean(axis=1)
        close = np.flatnonzero(agree >= threshold)
        yield from zip(left[close].tolist(), right[close].tolist())


def _unite(first: NDArray[np.int64], one: int, other: int) -> None:
    one, other = _root(first, one), _root(first, other)
    first[max(one, other)] = min(one, other)


def _root(first: NDArray[np.int64], place: int) -> int:
    while first[place] != place:
        first[place] = first[first[place]]
        place = int(first[place])
    return place


def write_tally(survey: Path, tally: Tally) -> None:
    """Store what `find` has counted; once the file is there, all keep files are."""
    temporary = survey / "duplicates.json.tmp"
    temporary.write_text(json.dumps(tally.as_dict()))
    temporary.replace(survey / "duplicates.json")
