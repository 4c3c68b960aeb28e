"""Losses that compare the rows of the global batch with one another, and their gradients.

A contrastive loss needs the output of every row before it can give the gradient of one. So a step has two
passes over its micro-batches (Gao et al. 2021, arXiv:2101.06983, whose GradCache does so on one device):

    pass 1    forward without gradients: this rank's outputs z [n, features]
    here      all-gather over the data ranks → all z [G, features], in the order of the global batch
              a slab of this rank's rows at a time: the loss of each row against all rows, and ∂loss/∂(all z)
              reduce-scatter → ∂(the sum of all ranks' losses)/∂z [n, features], the seeds
    pass 2    forward again, and backward from each micro-batch's output with its seeds

A row is an anchor on its own rank and a negative on all ranks. The reduce-scatter adds up the gradients that
it gets as either: with the other ranks' rows for constants, half of the gradient would be missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from common.objective import ComparesRows
from parallel.layout.mesh import Axis
from parallel.messages.collectives import gather_whole, scatter_sum

# Scores of a slab of rows with all rows: 64 MB in float32. A loss holds a few such tensors at a time.
SLAB_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Outputs:
    """What a model gave for rows of this rank: of one micro-batch, or of several one after another.

    rows: float32 [n, features].
    counted: bool [n], whether a row takes part; see `ComparesRows.counted`.
    """

    rows: Tensor
    counted: Tensor

    @classmethod
    def joined(cls, parts: Sequence["Outputs"]) -> "Outputs":
        return cls(torch.cat([one.rows for one in parts]), torch.cat([one.counted for one in parts]))


@dataclass(frozen=True)
class Compared:
    """The comparison of a rank's rows with all rows.

    losses, counts: float32 [n], as of an `Objective`.
    seeds: float32 [n, features], the gradient of factor × the sum of all ranks' losses with respect to this
        rank's rows; None where none was asked for.
    figures: float [measures, 2], as of `ComparesRows.measure_rows`; None where seeds were asked for.
    """

    losses: Tensor
    counts: Tensor
    seeds: Tensor | None
    figures: Tensor | None


class Comparison:
    """Compares this rank's rows with those of all data ranks.

    objective: gives the losses.
    data: this rank among the data ranks, in the order in which they divide the global batch. Every rank
        brings equally many rows.
    context: this rank among those that share each sequence: a row's output is the sum of theirs.
    """

    def __init__(self, objective: ComparesRows, data: Axis, context: Axis) -> None:
        self.objective = objective
        self._data, self._context = data, context

    @torch.no_grad()
    def whole(self, output: Tensor, counted: Tensor) -> Outputs:
        """Return a model's output [n, features], summed over the ranks of context parallelism."""
        rows = output.detach().to(torch.promote_types(output.dtype, torch.float32))
        if self._context.group is not None:
            rows = rows.clone()
            dist.all_reduce(rows, group=self._context.group)
        return Outputs(rows, counted)

    def compare(self, mine: Outputs, factor: float | None = None) -> Compared:
        """Return losses and counts of this rank's rows and, with a factor, their seeds. Collective."""
        every, counted = mine.rows, mine.counted
        if self._data.group is not None:
            every = gather_whole(every, 0, self._data.group)
            counted = gather_whole(counted.to(torch.uint8), 0, self._data.group).bool()
        every = every.detach().requires_grad_(factor is not None)
        count, first = len(mine.rows), self._data.rank * len(mine.rows)
        slab = max(1, SLAB_ELEMENTS // max(1, len(every)))
        losses, counts = [], []
        figures = mine.rows.new_zeros(len(self.objective.measures), 2)
        with torch.set_grad_enabled(factor is not None):
            for start in range(first, first + count, slab):
                end = min(start + slab, first + count)
                slab_losses, slab_counts = self.objective.loss_of_rows(
                    every[start:end], every, counted, start
                )
                if factor is not None:
                    (slab_losses.sum() * factor).backward()
                else:
                    figures += self.objective.measure_rows(every[start:end], every, counted, start)
                losses.append(slab_losses.detach())
                counts.append(slab_counts)
        seeds = None
        if factor is not None:
            assert every.grad is not None, "the loss depends on no output"
            seeds = every.grad
            if self._data.group is not None:
                seeds = scatter_sum(seeds, 0, self._data.group)
            seeds = self.objective.bounded(mine.rows, seeds)
        return Compared(torch.cat(losses), torch.cat(counts), seeds, figures if factor is None else None)
