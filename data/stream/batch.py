"""A micro-batch: named tensors whose dim 0 is the row, and which sequence each row is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from data.stream.rows import NOT_COUNTED


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one data rank.

    `tensors`, not to be written to: `tokens` and `targets`, int64 [rows, seq] (target -100: not counted;
    views of one tensor, a column apart, wherever nothing is masked); under document_mask also
    `positions` and `documents`, int64 [rows, seq]: the place inside the document, and which
    document of the row; of a stream with several sources `source`, int64 [rows]: which one each row is from.
    `sequences`: the rows' global sequence numbers; -1 marks a row that is only padding.
    """

    tensors: dict[str, Tensor]
    sequences: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows, padding rows included."""
        return len(self.sequences)

    def masked(self, numbers: Container[int], *, eos: int) -> Batch:
        """The same batch with the rows of these sequences as damage leaves them: separators, none counted."""
        rows = [row for row, number in enumerate(self.sequences) if number in numbers]
        if not rows:
            return self
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        tensors["tokens"][rows] = eos
        tensors["targets"][rows] = NOT_COUNTED
        if "documents" in tensors:
            tensors["documents"][rows] = 0
            tensors["positions"][rows] = torch.arange(tensors["positions"].shape[1])
        return Batch(tensors, self.sequences)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on `device`.

        From a CPU to CUDA by way of pinned memory: a copy from any other waits until the device has done all
        its work.
        """
        to_cuda = torch.device(device).type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            if to_cuda and tensor.device.type == "cpu":
                tensor = tensor.contiguous().pin_memory()
            return tensor.to(device, non_blocking=non_blocking)

        return Batch({name: moved(tensor) for name, tensor in self.tensors.items()}, self.sequences)
