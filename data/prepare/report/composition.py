"""What a corpus is made of, counted while it is written: sources, licences, languages, lengths."""

from collections.abc import Mapping
from typing import Any

KINDS = ("source", "licence", "language", "tokens_log2", "round_trip")


class Profile:
    """Documents, text bytes (UTF-8) and tokens by source, licence, language and length.

    groups: kind (one of `KINDS`) → value, such as the licence "MIT" → [documents, text bytes, tokens].
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, list[int]]] = {kind: {} for kind in KINDS}

    def add(self, origin: Mapping[str, Any], text_bytes: int, tokens: int) -> None:
        """Count one document under its source, licence, language and length.

        The length is the k for which 2^k ≤ tokens < 2^(k+1); −1 for a document without tokens.
        """
        for kind in ("source", "licence", "language"):
            self._count(kind, str(origin.get(kind, "not stated")), (1, text_bytes, tokens))
        self._count("tokens_log2", str(tokens.bit_length() - 1), (1, text_bytes, tokens))

    def count_round_trip(self, came_back: bool, text_bytes: int, tokens: int) -> None:
        """Count a document whose ids were decoded again; `came_back`: was that the text, byte for byte?"""
        self._count("round_trip", "same" if came_back else "differs", (1, text_bytes, tokens))

    def _count(self, kind: str, value: str, amounts: tuple[int, ...]) -> None:
        counts = self.groups[kind].setdefault(value, [0, 0, 0])
        for place, amount in enumerate(amounts):
            counts[place] += amount

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add another profile's `as_dict`."""
        for kind, values in other.items():
            for value, amounts in values.items():
                self._count(kind, value, tuple(amounts))

    def as_dict(self) -> dict[str, Any]:
        """The groups as JSON, sorted by value."""
        return {kind: dict(sorted(values.items())) for kind, values in self.groups.items()}
