"""Classes of a model, as the keys `id2label` and `num_labels` have them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.huggingface.fields import Fields

NAMES, NUMBERS = "id2label", "label2id"
_UNNAMED = "LABEL_"


def classes_from(fields: Fields) -> int:
    """Return how many there are."""
    return fields.size(NAMES, fields.integer("num_labels", 2))


def labels_to(names: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a config whose classes have these names."""
    return {
        NAMES: {str(number): name for number, name in enumerate(names)},
        NUMBERS: {name: number for number, name in enumerate(names)},
    }


def unnamed(count: int) -> dict[str, Any]:
    """Return the keys of a config whose classes have numbers alone."""
    return labels_to([f"{_UNNAMED}{number}" for number in range(count)])


def names_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in a config.json; empty where it states none, or numbers alone."""
    given = config.get(NAMES)
    if not isinstance(given, dict):
        return ()
    names = [given.get(str(number)) for number in range(len(given))]
    if any(not isinstance(name, str) for name in names):
        return ()
    found = tuple(str(name) for name in names)
    return () if found == tuple(unnamed(len(found))[NUMBERS]) else found
