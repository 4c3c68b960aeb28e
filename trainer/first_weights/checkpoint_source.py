"""A checkpoint of ours as a source of weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.manifest import MANIFEST, StoredChunk
from trainer.checkpoint.pieces.files import digest
from trainer.checkpoint.reader import DTYPES, Reader
from trainer.models.config import ModelConfig
from trainer.ranks import Ranks

PREFIX = "model."
"""Before the names of parameters, in a checkpoint; what is not of the model is the optimiser's."""


class CheckpointSource:
    """The weights of a verified checkpoint, whatever layout wrote it; see `WeightSource`.

    path: the checkpoint's folder.
    model: the config of the run's model.
    """

    def __init__(self, path: Path, model: ModelConfig) -> None:
        self._path, self.model = path, model
        self._reader = Reader(path)

    @property
    def where(self) -> str:
        return str(self._path)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        tensors = self._reader.manifest.tensors
        return {
            name.removeprefix(PREFIX): entry.shape
            for name, entry in tensors.items()
            if name.startswith(PREFIX)
        }

    @property
    def besides(self) -> list[str]:
        return []

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        entry = self._reader.manifest.tensors[f"{PREFIX}{name}"]
        whole: Tensor | None = None
        for stored in self._reader.manifest.stored(f"{PREFIX}{name}", offset, shape):
            into, out = _overlap(offset, shape, stored)
            part = self._reader.read(f"{PREFIX}{name}", stored)[out]
            if list(part.shape) == list(shape):
                return part
            if whole is None:
                whole = torch.empty(tuple(shape), dtype=DTYPES[entry.dtype])
            whole[into] = part
        assert whole is not None, f"{name}: no chunk at {offset}"
        return whole

    def forget(self) -> None:
        self._reader.forget()

    def check(self) -> None:
        self._reader.check()

    def digest(self, ranks: Ranks) -> str:
        """The manifest's: it has the hash of the table of all files, which has theirs."""
        return digest((self._path / MANIFEST).read_bytes())


def _overlap(
    offset: Sequence[int], shape: Sequence[int], stored: StoredChunk
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The common block of a wanted block and a stored chunk that overlaps it, as slices of each."""
    into, out = [], []
    for at, size, stored_at, stored_size in zip(offset, shape, stored.offset, stored.shape, strict=True):
        low, high = max(at, stored_at), min(at + size, stored_at + stored_size)
        into.append(slice(low - at, high - at))
        out.append(slice(low - stored_at, high - stored_at))
    return tuple(into), tuple(out)
