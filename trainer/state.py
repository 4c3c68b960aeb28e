"""What a run is besides its tensors: how far it has come, and what it must share with its checkpoints."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """How far a run has come. Totals over the whole run, not since the last start.

    `step` counts optimiser steps done; `sequences` is the stream's whole position (law 2): the global number
    of the next sequence to read; `tokens` counts the targets predicted.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0

    def advance(self, *, sequences: int, tokens: int) -> None:
        """One more step, which read this much."""
        self.step += 1
        self.sequences += sequences
        self.tokens += tokens

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        return cls(int(values["step"]), int(values["sequences"]), int(values["tokens"]))


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run. Loading a checkpoint of another one is refused, field by field.

    `data` is the stream's fingerprint, `model` the resolved model config as plain JSON (kept whole, so that
    an error can name the key that changed), `config` a digest of the whole config: informative, since a run
    may go on with another layout, learning rate or number of steps.
    """

    data: str = ""
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    config: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, saved: dict[str, Any], where: str) -> None:
        """Refuse a checkpoint of another run: `saved` is the identity in the checkpoint `where`.

        ValueError where the config asks for another model or seed, RuntimeError where the corpus is another.
        """
        model = json.loads(json.dumps(self.model))  # tuples come back as lists
        for key in sorted(model.keys() | saved["model"].keys()):
            now, then = model.get(key), saved["model"].get(key)
            if now != then:
                raise ValueError(
                    f"model.{key} is {now!r}, but {where} was saved with {then!r}: set it back, or give the"
                    " run another name"
                )
        if self.seed != saved["seed"]:
            raise ValueError(
                f"seed is {self.seed}, but {where} was saved with {saved['seed']}: set it back, or give the"
                " run another name"
            )
        if self.data != saved["data"]:
            raise RuntimeError(
                f"corpus changed since checkpoint {where}: the stream's fingerprint is {self.data}, it was"
                f" {saved['data']}: restore the corpus and its settings, or give the run another name"
            )
