"""Stochastic rounding to bfloat16 whose draws depend on no layout.

In one step an optimiser's moments change by about a hundredth or a thousandth of their size. bfloat16 has 8
significant bits: rounding to the nearest takes away every change below 1/512 of the value, so a second moment
under beta2 = 0.999 would never decay. Values are therefore rounded up or down with the probability that makes
the mean exact (Gupta et al. 2015, arXiv:1502.02551). On average a moment then moves as in float32, though it
is stored in 16 bits.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.engine import LocalParameter


@dataclass(frozen=True)
class Rounding:
    """The random draws for one state tensor of one parameter at one step.

    They are a pure function of (name, step, position in the global tensor), so a rank's part of a tensor is
    rounded exactly as that part of the whole tensor would be.

    seed: 64 bits, a hash of the parameter's and the state's name and of the step.
    offset: of the rank's part in the global tensor.
    """

    seed: int
    offset: tuple[int, ...]

    @classmethod
    def of(cls, member: LocalParameter, state: str, step: int) -> "Rounding":
        """Return the draws for `member`'s state named `state` in the update after `step` others."""
        digest = hashlib.blake2b(f"{member.name}:{state}:{step}".encode(), digest_size=8).digest()
        return cls(int.from_bytes(digest, "big"), tuple(member.offset))

    def __call__(self, values: Tensor, first: int = 0, kernel: "Kernel | None" = None) -> Tensor:
        """Return float32 values rounded to bfloat16.

        values: of the rank's part, from `first` along dim 0.
        kernel: `rounded`, compiled; None: eager.
        """
        numbers = (self.seed, self.seed >> 32, self.offset[0] + first, *self.offset[1:])
        # Filled on the device: copying numbers from the CPU would make the CPU wait for the device.
        low, high, *starts = (
            torch.full((), _signed(number), dtype=torch.int32, device=values.device) for number in numbers
        )
        return (kernel or rounded)(values, low, high, starts)


Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], Tensor]


def rounded(values: Tensor, low: Tensor, high: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Return float32 values rounded to bfloat16.

    low, high: the halves of the seed.
    starts: for each dim, the global index of the first value.

    `low`, `high` and each of `starts` are int32 tensors [] and not numbers, so that one compiled kernel
    serves every step: torch.compile may take a number for a constant, and compile anew for another.
    """
    # A bfloat16 is the upper 16 bits of a float32. Uniform noise added to the lower 16 carries into them with
    # a probability proportional to what is cut off.
    bits = values.view(torch.int32) + (_noise(values, low, high, starts) & 0xFFFF)
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def _noise(like: Tensor, low: Tensor, high: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Return int32 of `like`'s shape: a hash of (seed, global index), of which all 32 bits are random."""
    found = low.view((1,) * like.dim())
    for dim, (start, length) in enumerate(zip(starts, like.shape)):
        index = torch.arange(length, dtype=torch.int32, device=like.device) + start
        shape = [1] * like.dim()
        shape[dim] = length
        # Small tensors up to here: what is as large as `like` is made once, by the last addition.
        found = _mix(found) + _mix(index.view(shape) * _signed(0x9E3779B9) + high + dim)
    return _mix(found)


def _mix(x: Tensor) -> Tensor:
    """Return int32 `x` with every bit mixed into every other: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = x ^ (x >> 16 & 0xFFFF)
    x = x * _signed(0x85EBCA6B)
    x = x ^ (x >> 13 & 0x7FFFF)
    x = x * _signed(0xC2B2AE35)
    return x ^ (x >> 16 & 0xFFFF)


def _signed(value: int) -> int:
    """Return the lower 32 bits of `value` as an int32."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
