"""Losses and counts as a step adds them up, in total and by data source: law 3.

Other numbers that a step has to sum over all ranks travel in the same tensor, as `others`: in the torch
engine the squares of the gradients (for the norm), and in both engines the requests to stop and to exchange.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Sums:
    """Adds up rows on the device, without synchronising with it.

    sources: number of data sources whose sums are kept apart; 0: none.
    others: how many numbers of the caller's to pack beside the sums, for one reduction of all. The caller
        writes them into the attribute `others`.

    packed, float64: others, loss sum, count, loss sum of each source, count of each source.
    """

    def __init__(self, sources: int, others: int, device: torch.device) -> None:
        self.packed = torch.zeros(others + 2 + 2 * sources, dtype=torch.float64, device=device)
        self.others = self.packed[:others]
        self._total = self.packed[others : others + 2]
        self._by_source = self.packed[others + 2 :].view(2, sources)
        self._numbers = torch.arange(sources, device=device)

    def add(self, losses: Tensor, counts: Tensor, source: Tensor | None) -> None:
        """losses, counts: float [rows]; source: int64 [rows], or None where it is not known.

        Raises ValueError where there is not one loss a row, as of a model that returns something else.
        """
        if losses.shape != counts.shape:
            raise ValueError(
                f"the loss has shape {tuple(losses.shape)}, and a number for each of {len(counts)} rows is "
                "needed: for a model of your own see `offers` in docs/examples/own_model.md, what it returns"
            )
        rows = torch.stack((losses.detach(), counts)).double()
        self._total += rows.sum(dim=1)
        if source is not None and len(self._numbers):
            # A product rather than scattered additions, which a GPU does in any order.
            self._by_source += rows @ (source[:, None] == self._numbers).double()

    def measure(self, figures: Tensor) -> None:
        """figures: float [sources, 2], the sum and the count of each figure of an evaluation, which take the
        place of the sources there.
        """
        self._by_source += figures.T.double()


BySource = tuple[tuple[float, float], ...]
"""(loss sum, count) of each data source."""


def unpack(numbers: Sequence[float]) -> tuple[float, float, BySource]:
    """(loss sum, count, the same by source) of a `Sums.packed` without the others, on the host."""
    loss_sum, count, *by_source = numbers
    half = len(by_source) // 2
    return loss_sum, count, tuple(zip(by_source[:half], by_source[half:]))
