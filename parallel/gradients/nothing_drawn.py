"""A check that a model draws no random numbers, in the first steps of every process.

Dropout, RReLU, stochastic depth and the like draw from the process's own generator. What they draw depends on
which rows the process has, in which micro-batches, and on every restart, so no two layouts would equal each
other. Whatever is random in a run is drawn by an objective from the seed and the sequence number.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class NothingDrawn:
    """Watches the first steps of an engine: on a CPU the first one. On CUDA a model is refused that draws in
    each of three, for what compiles and tunes kernels in the first ones may draw there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._left = 3 if device.type == "cuda" else 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around forward and backward of a step: raise ValueError, one line, where a generator of this
        process has given numbers, that of the CPU or that of the device.
        """
        if not self._left:
            yield
            return
        before = _states(self._device)
        yield
        if all(map(torch.equal, before, _states(self._device))):
            self._left = 0
            return
        self._left -= 1
        if not self._left:
            raise ValueError(
                "the model draws from a random generator of the process, as dropout does, so its result "
                "depends on the layout, the micro-batch and every restart: leave out what draws"
            )


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
