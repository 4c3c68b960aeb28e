"""What went into a corpus, counted as it is written: sizes, sources, licences, languages, lengths."""

from collections.abc import Mapping
from typing import Any

KINDS = ("source", "licence", "language", "tokens_log2", "round_trip")


class Profile:
    """`groups[kind][value] = [documents, text bytes, tokens]`."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, list[int]]] = {kind: {} for kind in KINDS}

    def add(self, origin: Mapping[str, Any], text_bytes: int, tokens: int) -> None:
        """Counts one document under its source, licence, language and length (the bin 2^k ≤ tokens <
        2^(k+1)).
        """
        for kind in ("source", "licence", "language"):
            self._count(kind, str(origin.get(kind, "not stated")), (1, text_bytes, tokens))
        self._count("tokens_log2", str(tokens.bit_length() - 1), (1, text_bytes, tokens))

    def tried(self, came_back: bool, text_bytes: int, tokens: int) -> None:
        """Counts a document whose ids were decoded again: were they the text, byte for byte?"""
        self._count("round_trip", "same" if came_back else "differs", (1, text_bytes, tokens))

    def _count(self, kind: str, value: str, amounts: tuple[int, ...]) -> None:
        counts = self.groups[kind].setdefault(value, [0, 0, 0])
        for place, amount in enumerate(amounts):
            counts[place] += amount

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds what another profile's `as_dict` says."""
        for kind, values in other.items():
            for value, amounts in values.items():
                self._count(kind, value, tuple(amounts))

    def as_dict(self) -> dict[str, Any]:
        """JSON, sorted."""
        return {kind: dict(sorted(values.items())) for kind, values in self.groups.items()}
