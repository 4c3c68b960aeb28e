"""Counts of what happened to documents, by step: mergeable, JSON, and the same whoever counted."""

from collections.abc import Mapping
from typing import Any

EXAMPLES = 3


class Tally:
    """`counts[step] = [documents, bytes]`, `examples[step]` = the first few places it happened."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, step: str, size_bytes: int = 0, where: str = "", documents: int = 1) -> None:
        """Counts documents of `size_bytes` in all under `step`; `where` is kept for the first few."""
        count = self.counts.setdefault(step, [0, 0])
        count[0] += documents
        count[1] += size_bytes
        if where:
            examples = self.examples.setdefault(step, [])
            if len(examples) < EXAMPLES:
                examples.append(where)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds what another tally's `as_dict` says."""
        for step, (documents, size_bytes) in other["counts"].items():
            self.add(step, size_bytes, documents=documents)
        for step, places in other["examples"].items():
            examples = self.examples.setdefault(step, [])
            examples += places[: EXAMPLES - len(examples)]

    def clear(self) -> None:
        """Starts again; in place, because readers hold the tally."""
        self.counts.clear()
        self.examples.clear()

    def documents(self, step: str) -> int:
        """How many documents were counted under `step`."""
        return self.counts.get(step, [0, 0])[0]

    def as_dict(self) -> dict[str, Any]:
        """JSON, sorted."""
        return {"counts": dict(sorted(self.counts.items())), "examples": dict(sorted(self.examples.items()))}
