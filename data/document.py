"""One document on its way from a source into a corpus, and how bytes and records become its text."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.recipe import Recipe
from data.sources import InputFile
from data.tally import Tally


@dataclass(slots=True)
class Document:
    """One document. `origin` (source, path, and the place in it) goes into the corpus with it; `ids` are
    given for data that was tokenised before; `media` are members (extension → bytes) that travel beside the
    text.
    """

    text: str
    origin: dict[str, Any]
    ids: NDArray[np.integer] | None = None
    media: dict[str, bytes] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For people."""
        return ":".join(str(value) for value in self.origin.values())


def origin_of(file: InputFile, **place: Any) -> dict[str, Any]:
    """Where in which file of which source."""
    return {"source": file.source, "path": file.relative, **place}


def decode(raw: bytes, recipe: Recipe, tally: Tally, where: str) -> str | None:
    """UTF-8 (or what a byte order mark says) → text; None, counted, for what is binary or not to be
    repaired.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError:
                break
    if b"\0" in raw[: 1 << 13]:
        tally.add("removed.binary", len(raw), where)
        return None
    if recipe.undecodable == "skip":
        tally.add("removed.undecodable", len(raw), where)
        return None
    tally.add("changed.not_utf8", len(raw), where)
    return raw.decode("cp1252", errors="replace")


def whole(text: str, tally: Tally, where: str) -> str:
    """Text that UTF-8 can carry: half a surrogate pair or a byte that is not UTF-8, which JSON can smuggle
    in, becomes U+FFFD and is counted.
    """
    if text.isascii():  # known without looking
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        tally.add("changed.not_unicode", len(text), where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def from_record(
    record: dict[str, Any], origin: dict[str, Any], recipe: Recipe, tally: Tally
) -> Document | None:
    """The document of a record; None, counted, for one without text. Licence and language go into its
    origin.
    """
    text = record.get(recipe.text_field)
    for key, name in ((recipe.licence_field, "licence"), (recipe.language_field, "language")):
        if record.get(key) is not None:
            origin[name] = record[key] if isinstance(record[key], str) else str(record[key])
    document = Document("", origin)
    if not isinstance(text, str):
        fields = ", ".join(sorted(str(key) for key in record)[:8])
        tally.add(f"removed.no_{recipe.text_field}_field", 0, f"{document.where} (fields: {fields})")
        return None
    document.text = whole(text, tally, document.where)
    return document
