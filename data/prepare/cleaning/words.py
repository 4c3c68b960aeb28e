"""Words and runs of words as 64-bit hashes, to find repetition, near duplicates and contamination with."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def plain_words(text: str) -> list[str]:
    """The words in lower case, without punctuation: texts that differ only in these have the same words."""
    return _WORD.findall(text.lower())


def hashes(words: list[str]) -> Hashes:
    """[words] one hash for each word; the same on every machine."""
    return np.fromiter((xxhash.xxh3_64_intdigest(word.encode()) for word in words), np.uint64, len(words))


def runs(words: Hashes, length: int) -> Hashes:
    """[words] → [words − length + 1]: a hash of each run of `length` words, in order; empty where there are
    fewer words.
    """
    count = len(words) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    return mixed(words[place : place + count] for place in range(length))


def mixed(columns: Iterable[NDArray[np.unsignedinteger]]) -> Hashes:
    """Columns [rows] → [rows]: one hash for each row; it depends on the order of the columns."""
    total: Any = 0
    for column in columns:
        total = column.astype(np.uint64) + total * _FACTOR
    # A polynomial alone leaves patterns in the low bits, which MinHash and the sorting by shares use.
    return (total ^ (total >> np.uint64(31))) * _MIX
