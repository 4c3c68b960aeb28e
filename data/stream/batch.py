"""A micro-batch: named tensors whose dim 0 is the row, and which sequence each row is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from data.stream.rows import NO_TOKEN


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one data rank.

    tensors: not to be written to, each int64 but `image`:
        tokens [rows, seq];
        following [rows, seq]: the token that follows each one in its document, -1 where none does (padding, a
            masked sequence) or where a held-out window repeats context. `tokens` and `following` are views of
            one tensor, a column apart, wherever nothing is masked;
        positions, documents [rows, seq], under document_mask: the place inside the document, and which
            document of the row;
        source [rows], of a stream with several sources: which one each row is from;
        where each row is of one document (packing=one, views, pair):
            length [rows]: inputs before the padding; 0 where nothing of the row counts; [rows, 2] where the
                row is two halves;
            label [rows]: the document's class, -1 where none is stated;
            image [rows, views, size, size, 3], uint8, with data.image_size: the views of the document's
                picture, RGB; zeros where `length` is 0, as it also is where the picture is damaged;
        marks, following_marks [rows, seq], with packing=marked: the mark of each token, and of the one that
        follows it; 0
            where there is none;
        partner, partner_following [rows, seq], with partners: another sequence for each, masked where the row
            or the partner is damaged: the row is then masked too.
    sequences: the rows' global sequence numbers; -1 marks a row that is only padding.
    """

    tensors: dict[str, Tensor]
    sequences: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows, padding rows included."""
        return len(self.sequences)

    def masked(self, numbers: Container[int], *, eos: int) -> Batch:
        """The same batch with the rows of these sequences masked, as those of damaged documents are: all
        separators, which no token follows.
        """
        rows = [row for row, number in enumerate(self.sequences) if number in numbers]
        if not rows:
            return self
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        blank = {"tokens": eos, "partner": eos, "following": NO_TOKEN, "partner_following": NO_TOKEN}
        blank |= {"length": 0, "label": -1, "image": 0, "marks": 0, "following_marks": 0}
        for name, value in blank.items():
            if name in tensors:
                tensors[name][rows] = value
        if "documents" in tensors:
            columns = torch.arange(tensors["tokens"].shape[1])
            two = "length" in tensors and tensors["length"].dim() == 2
            half = len(columns) // 2 if two else len(columns)
            tensors["documents"][rows] = 2 * (columns // half)
            tensors["positions"][rows] = columns % half
        return Batch(tensors, self.sequences)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on `device`.

        From a CPU to CUDA through pinned memory: a copy from other memory waits until the device has finished
        all its work.
        """
        to_cuda = torch.device(device).type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            if to_cuda and tensor.device.type == "cpu":
                tensor = tensor.contiguous().pin_memory()
            return tensor.to(device, non_blocking=non_blocking)

        return Batch({name: moved(tensor) for name, tensor in self.tensors.items()}, self.sequences)
