"""Streams over small corpora."""

from pathlib import Path
from typing import Any

from data.config import DataConfig, Source
from data.stream.stream import Stream


def open_stream(*folders: Path, seed: int = 0, global_batch: int = 8, **settings: Any) -> Stream:
    """A stream over the corpora in these folders, one source each."""
    settings = {"seq_len": 16, "shuffle_blocks": 3} | settings
    cfg = DataConfig(sources=[Source(str(folder), name=folder.name) for folder in folders], **settings)
    return Stream.open(cfg, seed=seed, global_batch=global_batch)


def epoch_of(stream: Stream) -> int:
    """Sequences of an epoch of all sources."""
    return sum(stream.sequences_per_epoch.values())
