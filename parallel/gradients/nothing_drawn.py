"""A check that a model draws no random numbers, in the first step of every process.

Dropout, RReLU, stochastic depth and the like draw from the process's own generator. What they draw depends on
which rows the process has, in which micro-batches, and on every restart, so no two layouts would equal each
other. Whatever is random in a run is drawn by an objective from the seed and the sequence number.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def nothing_drawn(device: torch.device) -> Iterator[None]:
    """Around forward and backward of a step: raise ValueError, one line, where a generator of this process
    has given numbers, that of the CPU or that of `device`.
    """
    before = _states(device)
    yield
    if not all(map(torch.equal, before, _states(device))):
        raise ValueError(
            "the model draws from a random generator of the process, as dropout does, so its result depends "
            "on the layout, the micro-batch and every restart: leave out what draws"
        )


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
