"""Random numbers that are functions of (seed, name, sequence number, place): equal on every rank, in every
micro-batch, on every device and after a resume.

No generator is involved. A number is a hash: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators") of a key for the seed and the draw's name, then of the sequence number, then
of the place. Only integer arithmetic that wraps around at 64 bits is used, so results do not depend on the
version or the device either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_STEP = -7046029254386353131  # 0x9E3779B97F4A7C15, 2^64 / golden ratio, as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(frozen=True)
class Draw:
    """One kind of random number of a run.

    seed: the run's.
    name: of the draw, such as `masked_lm.places`. Draws of two names are independent.

    All methods take `sequences`, the rows' global sequence numbers (see `numbers`), int64 [rows], and
    `count`, the number of places of a row. Rows of equal numbers are equal.
    """

    seed: int
    name: str

    def bits(self, sequences: Tensor, count: int) -> Tensor:
        """Return 64 random bits for each place, int64 [rows, count]."""
        rows = _mixed(sequences + self._key)
        places = torch.arange(1, count + 1, device=sequences.device) * _STEP
        return _mixed(rows[:, None] + places)

    def uniform(self, sequences: Tensor, count: int) -> Tensor:
        """Return numbers in [0, 1), multiples of 2^-24, float32 [rows, count]."""
        return _top(self.bits(sequences, count), 24).to(torch.float32) * 2.0**-24

    def integers(self, sequences: Tensor, count: int, below: int | Tensor) -> Tensor:
        """Return integers in [0, below), int64 [rows, count].

        below: at most 2^31; a tensor is broadcast to [rows, count]. Some integers are more frequent than
            others by below / 2^32, relatively. 0 gives 0.
        """
        return _top(self.bits(sequences, count), 32) * below >> 32

    def ranks(self, sequences: Tensor, count: int, among: Tensor | None = None) -> Tensor:
        """Return a random order of each row's places: the rank of each place, int64 [rows, count].

        among: bool [rows, count], the places that are ordered: these have the ranks from 0 on, the others
            those behind. None: all. So `ranks(…) < k` chooses k of the places, every choice equally likely.
        """
        bits = _top(self.bits(sequences, count), 62)
        if among is not None:
            bits = bits + (~among).to(torch.int64) * (1 << 62)
        # Stable: two equal hashes are ordered by their place, on every device.
        order = bits.argsort(dim=1, stable=True)
        places = torch.arange(count, device=sequences.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)

    @cached_property
    def _key(self) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def numbers(sequences: Sequence[int], device: torch.device) -> Tensor:
    """Return the rows' sequence numbers as a tensor on `device`, int64 [rows], without waiting for it."""
    found = torch.tensor(sequences, dtype=torch.int64)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def _mixed(bits: Tensor) -> Tensor:
    """Return SplitMix64's output function of each element."""
    bits = (bits ^ _right(bits, 30)) * _FIRST
    bits = (bits ^ _right(bits, 27)) * _SECOND
    return bits ^ _right(bits, 31)


def _right(bits: Tensor, by: int) -> Tensor:
    """Shift right, with zeros from the left: torch's own shift of int64 repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _top(bits: Tensor, count: int) -> Tensor:
    """Return the upper `count` bits as a number."""
    return _right(bits, 64 - count)
