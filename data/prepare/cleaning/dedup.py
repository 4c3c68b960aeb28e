"""What documents are compared by to find duplicates, and the verdicts. `data.prepare.duplicates` finds them.

Of equal documents, the first in the order of the sources stays. Near duplicates are found as FineWeb and
others do: MinHash (Broder 1997) of word 5-grams, and bands (locality-sensitive hashing). Here the similarity
of each pair is checked before it counts, and of all documents that pairs connect, the first stays.
"""

import numpy as np
from numpy.typing import NDArray

from data.prepare.cleaning.words import hashes, plain_words, runs

SHINGLE_WORDS = 5
PERMUTATIONS = 128
_RECALL = 0.95
_SEED = 20_240_501
# The verdicts: the document stays, or why it is left out.
KEPT, SAME, NEAR = 0, 1, 2
STEPS = {SAME: "removed.duplicate", NEAR: "removed.near_duplicate"}


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
