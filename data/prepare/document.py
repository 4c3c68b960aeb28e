"""One document on its way from a source into a corpus."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Document:
    """One document; what a reader makes, cleaning changes in place, and encoding writes.

    text: the text; "" where `ids` are given.
    origin: source, path, and the place in the file (offset, row, key, …); the corpus keeps it.
    ids: [tokens] token ids, for data that was tokenised before; None for text.
    media: file extension → bytes of members that are kept beside the text, such as a picture.
    second: the second text of a document that is a pair; else None.
    """

    text: str
    origin: dict[str, Any]
    ids: NDArray[np.integer] | None = None
    media: dict[str, bytes] = field(default_factory=dict)
    second: str | None = None

    @property
    def where(self) -> str:
        """The origin in one word, for messages: source:path:place."""
        return ":".join(str(value) for value in self.origin.values())

    @property
    def is_text(self) -> bool:
        """Is the document one text alone, so that cleaning may change it?"""
        return self.ids is None and not self.media and self.second is None

    @property
    def content(self) -> bytes:
        """The bytes by which two documents are the same document: ids or text, second text, media."""
        given = self.ids.astype("<i8").tobytes() if self.ids is not None else self.text.encode()
        second = b"" if self.second is None else b"\0" + self.second.encode()
        return given + second + b"".join(self.media[extension] for extension in sorted(self.media))
