"""What is known of finished fine-tunings: a JSON file each, written in one step. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_atomically
from trainer.config.transferring import BEGUN, TransferConfig
from trainer.folder.fence import Guard, unfenced
from trainer.transfer import plan
from trainer.transfer.plan import Trial


@dataclass(frozen=True)
class Records:
    """The records in a comparison's folder.

    guard: raises where this process may write no more.
    """

    cfg: TransferConfig
    guard: Guard = unfenced

    def path(self, trial: Trial) -> Path:
        return self.cfg.folder / "trials" / f"{trial.key}.json"

    def add(self, trial: Trial, figures: Mapping[str, float], cpu_seconds: float) -> None:
        """Note that a fine-tuning is done. figures: of its evaluation by name."""
        path = self.path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = trial.to_json() | {"figures": dict(figures), "cpu_seconds": round(cpu_seconds, 3)}
        write_atomically(path, json.dumps(record, indent=1).encode() + b"\n", guard=self.guard)

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
        """Whether `note_begun` was called for all that the config asks for."""
        if not (self.cfg.folder / BEGUN).is_file():
            return False
        begun = json.loads((self.cfg.folder / BEGUN).read_bytes()).get("begun", {})
        return all(set(asked) <= set(begun.get(key, ())) for key, asked in self._asked().items())

    def note_begun(self, seen: Mapping[int, list[int]], of: int) -> None:
        """Note that labels and random weights are drawn, and how many of all `of` classes are among the
        labels, for each number of labels.
        """
        counted = {str(number): counts for number, counts in seen.items()}
        record = {"classes": of, "seen": counted, "begun": self._asked()}
        content = json.dumps(record, indent=1).encode() + b"\n"
        write_atomically(self.cfg.folder / BEGUN, content, guard=self.guard)

    def _asked(self) -> dict[str, list[int]]:
        """What labels and weights are drawn for."""
        return {
            "seeds": plan.seeds(self.cfg),
            "labels": sorted(self.cfg.labels),
            "rates_at": plan.rate_labels(self.cfg),
        }

    def classes(self) -> tuple[int, dict[int, list[int]]]:
        """What `note_begun` was given, `of` first."""
        record = json.loads((self.cfg.folder / BEGUN).read_bytes())
        return record["classes"], {int(number): counts for number, counts in record["seen"].items()}
