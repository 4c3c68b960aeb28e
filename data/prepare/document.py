"""One document on its way from a source into a corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What an origin holds of a document's place; the rest of it is about the document, such as its class.
_PLACE = ("source", "path", "offset", "row", "key", "token", "record", "part")


@dataclass(frozen=True)
class Mark:
    """What is asked of the tokens of a stretch of text.

    begin, end: the stretch, in characters.
    each: the mark of all its tokens; 0 leaves the marks that they have.
    first: the mark of the first one, if not 0.
    last: the mark of the last one, if not 0. A single token that is both has first + last - 1.
    """

    begin: int
    end: int
    each: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Marks:
    """The marks of a document.

    stretches: the marks, later ones over earlier ones. They are of the document's last text.
    template: does the tokenizer's own template stand around the document? Else the text states its special
        tokens itself, as that of a chat does.
    """

    stretches: tuple[Mark, ...]
    template: bool = True


def marks_from(values: Mapping[str, Any]) -> Marks:
    """Marks from their `dataclasses.asdict`."""
    return Marks(tuple(Mark(**stretch) for stretch in values["stretches"]), values["template"])


@dataclass(slots=True)
class Document:
    """One document; what a reader makes, cleaning changes in place, and encoding writes.

    text: the text; "" where `ids` are given.
    origin: source, path, and the place in the file (offset, row, key, …); the corpus keeps it.
    ids: [tokens] token ids, for data that was tokenised before; None for text.
    media: file extension → bytes of members that are kept beside the text, such as a picture.
    second: the second text of a document that is a pair; else None.
    marks: what is asked of its tokens, of a document for a task; else None.
    """

    text: str
    origin: dict[str, Any]
    ids: NDArray[np.integer] | None = None
    media: dict[str, bytes] = field(default_factory=dict)
    second: str | None = None
    marks: Marks | None = None

    @property
    def where(self) -> str:
        """The place in one word, for messages: source:path:place, such as a key or a row."""
        return ":".join(str(self.origin[name]) for name in _PLACE if name in self.origin)

    @property
    def is_text(self) -> bool:
        """Is the document one text alone, so that cleaning may change it?"""
        return self.ids is None and not self.media and self.second is None and self.marks is None

    @property
    def content(self) -> bytes:
        """The bytes by which two documents are the same document: ids or text, second text, media."""
        given = self.ids.astype("<i8").tobytes() if self.ids is not None else self.text.encode()
        second = b"" if self.second is None else b"\0" + self.second.encode()
        marks = b"" if self.marks is None else repr(self.marks).encode()
        return given + second + marks + b"".join(self.media[extension] for extension in sorted(self.media))
