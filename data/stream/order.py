"""Permutations without tables: a key and a place give the shuffled place.

A Feistel network is a bijection whatever its round function; six rounds of splitmix64's finaliser mix well
enough for shuffling (Luby and Rackoff 1988 prove four for a random function; splitmix64: Steele, Lea and
Flood, OOPSLA 2014). It permutes a power of two; a place that leaves the domain walks on along its cycle
until it is back inside (Black and Rogaway 2002), so any size has an exact permutation.
"""

from __future__ import annotations

import hashlib

import numpy as np

SMALL = 64  # up to this size a table is cheap, and better mixed than halves of so few bits
ROUNDS = 6  # even, so that halves of unequal width end where they began
_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


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
