"""Tags of words → the entities that they name."""

from __future__ import annotations

from collections.abc import Sequence


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (type, first word, last word) of each entity in the tags of a text.

    B-X begins an entity of type X, I-X goes on with it, E-X ends it, and S-X is one of a single word: IO, BIO
    and BIOES alike. An I-X or E-X without one of its type before it begins one, as in CoNLL's own evaluation
    (conlleval, Tjong Kim Sang and Buchholz 2000). Any other tag is outside.
    """
    found, kind, first = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        name = name if prefix in ("B", "I", "E", "S") else ""
        if kind and (prefix not in ("I", "E") or name != kind):
            found.add((kind, first, place - 1))
            kind = ""
        if name and not kind:
            kind, first = name, place
        if kind and prefix in ("E", "S"):
            found.add((kind, first, place))
            kind = ""
    return found
