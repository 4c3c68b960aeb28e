"""The order of one source's sequences, as a pure function, by permutations without tables.

    permute(places, size, key)   the shuffled places
    another(places, size, key)   another place for each
    hashes(places, key)          64 bits for each
    ShuffledOrder.locate(n)      which window of which blocks the n-th sequence of a source is

The blocks of an epoch are shuffled, every `shuffle_blocks` of them are an *era*, and the windows of an era
are shuffled as one:

    blocks in the order of the epoch    7  2  9 | 0  4  1 | 3  8  5 | 6
    (here shuffle_blocks is 3)           era 0    era 1     era 2     era 3

    windows of era 1, block by block    0a 0b 4a 4b 4c 1a
    in the order of the epoch           4c 0a 1a 4a 0b 4b     sequences 9 to 14, where era 0 has nine

A Feistel network is a bijection whatever its round function; six rounds of splitmix64's finaliser mix well
enough for shuffling (Luby and Rackoff 1988 prove four for a random function; splitmix64: Steele, Lea and
Flood, OOPSLA 2014). The network permutes a power of two; a place that leaves the domain is permuted again
until it is back inside (Black and Rogaway 2002), so any size has an exact permutation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

SMALL = 64  # up to this size a table is cheap, and better mixed than halves of so few bits
NEARBY = 1024  # `another` place is in the same run of so many: sequences near one another share open eras
ROUNDS = 6  # even, so that halves of unequal width end where they began
_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class EraBlocks:
    """Which blocks an era is made of. Two are equal that are of the same place in the order.

    epoch: counts from 0.
    era: its number in the epoch.
    blocks: the blocks of the era, in order, int64.
    following: the blocks of the next era; none after the epoch's last.
    """

    epoch: int
    era: int
    blocks: np.ndarray = field(compare=False)
    following: np.ndarray = field(compare=False)


class ShuffledOrder:
    """The order of one source's sequences, epoch after epoch.

    windows: sequences of each block of the corpus, int64 [blocks].
    shuffle_blocks: blocks of an era.
    key: different keys give unrelated orders.
    """

    def __init__(self, windows: np.ndarray, shuffle_blocks: int, key: int) -> None:
        self._windows, self._shuffle_blocks, self._key = windows, shuffle_blocks, key
        self.sequences = int(windows.sum())  # of an epoch
        self._epoch = lru_cache(maxsize=2)(self._shuffle_blocks_of)

    def locate(self, ordinals: np.ndarray) -> Iterator[tuple[EraBlocks, np.ndarray, np.ndarray]]:
        """Where sequences of the source are, by their number in it, int64 [n]: for each era that has some,
        (blocks of the era, which of `ordinals`, their windows of the era).
        """
        epochs, places = np.divmod(ordinals, self.sequences)
        for epoch in np.unique(epochs).tolist():
            _, bounds = self._epoch(epoch)
            mine = np.flatnonzero(epochs == epoch)
            eras = np.searchsorted(bounds, places[mine], side="right") - 1
            for era in np.unique(eras).tolist():
                which = mine[eras == era]
                size = int(bounds[era + 1] - bounds[era])
                key = derive_key(self._key, "windows", epoch, era)
                windows = permute(places[which] - bounds[era], size, key)
                blocks, following = self.blocks(epoch, era), self.blocks(epoch, era + 1)
                yield EraBlocks(epoch, era, blocks, following), which, windows

    def blocks(self, epoch: int, era: int) -> np.ndarray:
        """The blocks that an era is made of, in order; none after the epoch's last era."""
        blocks, _ = self._epoch(epoch)
        return blocks[era * self._shuffle_blocks : (era + 1) * self._shuffle_blocks]

    def _shuffle_blocks_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the blocks in this epoch's order, the first sequence of each era and the end)."""
        count, size = len(self._windows), self._shuffle_blocks
        blocks = permute(np.arange(count), count, derive_key(self._key, "blocks", epoch))
        ends = np.cumsum(self._windows[blocks])
        last = np.minimum(np.arange(1, -(-count // size) + 1) * size, count)
        return blocks, np.concatenate(([0], ends[last - 1]))


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from what it is for; different parts give unrelated keys."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """The shuffled places (int64, same shape) of `places` (integers in [0, size)) under `key`."""
    assert 1 <= size <= 1 << 62, size
    out: np.ndarray = np.asarray(places).astype(np.uint64).ravel()
    if size <= SMALL:
        table = np.argsort(_mix(np.arange(size, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key)))
        out = table[out.astype(np.int64)]
    else:
        bits = (size - 1).bit_length()
        keys = [np.uint64((key + _GAMMA * (i + 1)) & _WORD) for i in range(ROUNDS)]
        out = _feistel(out, bits, keys)
        outside = np.flatnonzero(out >= size)
        while outside.size:
            out[outside] = _feistel(out[outside], bits, keys)
            outside = outside[out[outside] >= size]
    return out.astype(np.int64).reshape(np.shape(places))


def another(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """For each of `places` (int64 in [0, size)) another place, never itself (int64, same shape): each of the
    others in the same run of NEARBY places is as likely. `size` is at least 2.
    """
    assert size >= 2, size
    first = np.minimum(places // NEARBY * NEARBY, size - 2)  # the last run is never of one place
    run = np.minimum(first + NEARBY, size) - first
    drawn = hashes(places, key)
    steps = 1 + (drawn % (run - 1).astype(np.uint64)).astype(np.int64)
    return first + (places - first + steps) % run


def hashes(places: np.ndarray, key: int) -> np.ndarray:
    """64 bits for each of `places` (integers of at least 0), uint64, same shape."""
    return _mix(places.astype(np.uint64) * np.uint64(_GAMMA) + np.uint64(key))


def _feistel(values: np.ndarray, bits: int, keys: list[np.uint64]) -> np.ndarray:
    narrow, wide = bits // 2, bits - bits // 2
    masks = np.uint64((1 << narrow) - 1), np.uint64((1 << wide) - 1)
    left, right = values >> np.uint64(wide), values & masks[1]
    for i, key in enumerate(keys):
        left, right = right, (left ^ _mix(right + key)) & masks[i % 2]
    return left << np.uint64(wide) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser; `x` is overwritten."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
