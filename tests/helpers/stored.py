"""Checkpoints of a few tensors, written without a run."""

import json
from pathlib import Path

import torch
from torch import Tensor

from parallel.engine import Chunk
from trainer.checkpoint import folder as folders
from trainer.checkpoint import store
from trainer.checkpoint.merge import Part


def whole(name: str, tensor: Tensor) -> Chunk:
    return Chunk(name, tensor, tuple(tensor.shape), (0,) * tensor.dim(), True)


def write(root: Path, ranks: list[list[Chunk]], step: int = 1) -> Path:
    """A committed checkpoint of these ranks' chunks, as the manager makes it."""
    tmp = root / ".tmp-x"
    tmp.mkdir(parents=True)
    parts = [store.write_part(tmp, rank, chunks) for rank, chunks in enumerate(ranks)]
    tables = {share.digest: share.table for part in parts for share in part.shares}
    parts = [Part.from_json(json.loads(json.dumps(part.to_json())), tables.__getitem__) for part in parts]
    final = folders.step_folder(root, step)
    folders.commit(tmp, final, parts, step=step, sequences=8 * step)
    return final


def small_checkpoint(root: Path) -> Path:
    chunks = [
        [Chunk(f"w{i}", torch.randn(6, 4), (12, 4), (6 * rank, 0), True) for i in range(3)]
        for rank in range(2)
    ]
    return write(root, chunks)
