"""Counts of what happened to documents, by step. The units' tallies are merged in the order of the corpus, so
the result does not depend on the number of workers.
"""

from collections.abc import Mapping
from typing import Any

EXAMPLES = 3


class Tally:
    """Documents and their size by step, with a few examples.

    counts: step → [documents, size]. The size is in characters where a step works on text, in bytes of the
        source where a reader counts before there is text (`data.prepare.report.step_names.unit_of`).
    examples: step → the first `EXAMPLES` places where the step happened.
    """

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, step: str, size: int = 0, where: str = "", documents: int = 1) -> None:
        """Count documents under `step`.

        size: of these documents together, in characters or bytes (see the class).
        where: the place, kept for the first few.
        documents: how many.
        """
        count = self.counts.setdefault(step, [0, 0])
        count[0] += documents
        count[1] += size
        if where:
            examples = self.examples.setdefault(step, [])
            if len(examples) < EXAMPLES:
                examples.append(where)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add another tally's `as_dict`."""
        for step, (documents, size) in other["counts"].items():
            self.add(step, size, documents=documents)
        for step, places in other["examples"].items():
            examples = self.examples.setdefault(step, [])
            examples += places[: EXAMPLES - len(examples)]

    def clear(self) -> None:
        """Forget all counts, in place: readers hold a reference to the tally."""
        self.counts.clear()
        self.examples.clear()

    def documents(self, step: str) -> int:
        """The number of documents counted under `step`."""
        return self.counts.get(step, [0, 0])[0]

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON, sorted by step."""
        return {"counts": dict(sorted(self.counts.items())), "examples": dict(sorted(self.examples.items()))}
