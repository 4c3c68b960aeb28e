"""What is known of finished fine-tunings: a JSON file each, written in one step. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_atomically
from trainer.config.transferring import TransferConfig
from trainer.transfer.plan import Trial

_CLASSES = "classes.json"


@dataclass(frozen=True)
class Records:
    """The records in a comparison's folder."""

    cfg: TransferConfig

    def path(self, trial: Trial) -> Path:
        return self.cfg.folder / "trials" / f"{trial.key}.json"

    def add(self, trial: Trial, figures: Mapping[str, float], cpu_seconds: float) -> None:
        """Note that a fine-tuning is done. figures: of its evaluation by name."""
        path = self.path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = trial.to_json() | {"figures": dict(figures), "cpu_seconds": round(cpu_seconds, 3)}
        write_atomically(path, json.dumps(record, indent=1).encode() + b"\n")

    def has(self, trial: Trial) -> bool:
        """Whether a fine-tuning is done."""
        return self.path(trial).is_file()

    def all(self) -> dict[str, dict[str, Any]]:
        """Key → record of every fine-tuning that is done."""
        found = sorted((self.cfg.folder / "trials").glob("*.json"))
        return {path.stem: json.loads(path.read_bytes()) for path in found}

    def scores(self) -> dict[str, float]:
        """Key → score of every fine-tuning that is done."""
        return {key: record["figures"][self.cfg.metric] for key, record in self.all().items()}

    def begun(self) -> bool:
        """Whether `note_classes` was called for all numbers of labels, with all seeds."""
        if not (self.cfg.folder / _CLASSES).is_file():
            return False
        _, seen = self.classes()
        return all(len(seen.get(number, ())) >= self.cfg.seeds for number in self.cfg.labels)

    def note_classes(self, seen: Mapping[int, list[int]], of: int) -> None:
        """Keep how many of all `of` classes are among the labels, for each number of labels."""
        record = {"classes": of, "seen": {str(number): counts for number, counts in seen.items()}}
        write_atomically(self.cfg.folder / _CLASSES, json.dumps(record, indent=1).encode() + b"\n")

    def classes(self) -> tuple[int, dict[int, list[int]]]:
        """What `note_classes` was given, `of` first."""
        record = json.loads((self.cfg.folder / _CLASSES).read_bytes())
        return record["classes"], {int(number): counts for number, counts in record["seen"].items()}
