"""What a run is besides its tensors: how far it has come, and what it must share with a checkpoint it loads."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """How far a run has come. Totals over the whole run, not since the last start.

    `step` counts optimiser steps done; `sequences` is the stream's whole position (law 2): the global number of
    the next sequence to read; `tokens` counts target positions read, padding included.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        return cls(int(values["step"]), int(values["sequences"]), int(values["tokens"]))


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run. Loading a checkpoint of another one is refused, field by field.

    `data` is the stream's fingerprint, `model` the resolved model config as plain JSON (kept whole, so that an
    error can name the key that changed), `config` a digest of the whole config: informative, since a run may go
    on with another layout, learning rate or number of steps.
    """

    data: str = ""
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    config: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
