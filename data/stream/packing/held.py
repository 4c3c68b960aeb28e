"""What the windows of a packing hold of the documents, by arithmetic on lengths: without packing any."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.stream.packing.packing import Documents


def _cut(documents: Documents, seq_len: int) -> tuple[int, int]:
    first = documents.first
    ends = np.concatenate(([0], np.cumsum(documents.lengths)))
    begins = ends[:-1] - np.repeat(ends[first[:-1]], np.diff(first))  # in its block, which begins a window
    last = begins + np.maximum(documents.lengths - 1, 0)
    return int((begins // seq_len != last // seq_len).sum()), int(ends[-1])


def _best_fit(documents: Documents, seq_len: int) -> tuple[int, int]:
    return int((documents.lengths > seq_len).sum()), int(documents.lengths.sum())


def _one(documents: Documents, seq_len: int) -> tuple[int, int]:
    return int((documents.lengths > seq_len).sum()), int(np.minimum(documents.lengths, seq_len).sum())


HELD: dict[str, Callable[[Documents, int], tuple[int, int]]] = {
    "cut": _cut,
    "best_fit": _best_fit,
    "one": _one,
}
"""Packing whose windows are of one part → (documents that are in no window whole, inputs in all windows)."""
