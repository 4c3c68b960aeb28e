"""A fine-tuned run's checkpoint as a source of whole weights: its base's, with LoRA's branches added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from trainer.checkpoint.store import read_tensor
from trainer.config.run_config import RunConfig
from trainer.first_weights.checkpoint_source import PREFIX, CheckpointSource
from trainer.first_weights.source import WeightSource
from trainer.models.config import ModelConfig
from trainer.models.tuned.plan import LORA, is_added
from trainer.ranks import Ranks


class MergedSource:
    """What is trained from a checkpoint, the rest from its base; see `WeightSource`.

    A matrix with a branch is W + scale · B A, added up block by block in float64: A and B are small and kept.
    """

    def __init__(
        self, trained: CheckpointSource, base: WeightSource, checkpoint: Path, cfg: RunConfig
    ) -> None:
        self._trained, self._base = trained, base
        self.model: ModelConfig = cfg.model
        self._scale = cfg.finetune.scale
        self._branches: dict[str, tuple[Tensor, Tensor]] = {}
        for name in trained.parameters:
            layer, found, matrix = name.rpartition(f".{LORA}.")
            if found and matrix == "a.weight":
                a, b = (read_tensor(checkpoint, f"{PREFIX}{layer}.{LORA}.{one}.weight") for one in "ab")
                self._branches[f"{layer}.weight"] = a.double(), b.double()

    @property
    def where(self) -> str:
        return self._trained.where

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        own = {name: shape for name, shape in self._trained.parameters.items() if not is_added(name)}
        heads = tuple(f"{head}." for head in self.model.plan().task)
        below = {n: shape for n, shape in self._base.parameters.items() if not n.startswith(heads)}
        return below | own

    @property
    def besides(self) -> list[str]:
        return []

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        if name in self._trained.parameters:
            return self._trained.read(name, offset, shape)
        block = self._base.read(name, offset, shape)
        if name not in self._branches:
            return block
        a, b = self._branches[name]
        rows, columns = (slice(start, start + size) for start, size in zip(offset, shape, strict=True))
        return (block.double() + b[rows] @ a[:, columns] * self._scale).to(torch.float32)

    def forget(self) -> None:
        self._trained.forget()
        self._base.forget()

    def check(self) -> None:
        self._trained.check()
        self._base.check()

    def digest(self, ranks: Ranks) -> str:
        return xxhash.xxh3_128_hexdigest((self._trained.digest(ranks) + self._base.digest(ranks)).encode())
