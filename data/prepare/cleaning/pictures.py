"""Is the picture of a document one that training can decode? Each is decoded once, here."""

from data.corpus.columns import PICTURES
from data.pictures.decode import NotAPicture, check
from data.prepare.document import Document
from data.prepare.tally import Tally


def keep_picture(document: Document, tally: Tally) -> bool:
    """Whether the document's picture can be decoded; else counted, with its place and the reason.

    The bytes stay as they are. Their extension becomes that of their content. Of several pictures the first
    is kept, in the order of `data.corpus.columns.PICTURES`.
    """
    extensions = [name for name in PICTURES if name in document.media]
    for name in extensions[1:]:
        tally.add("changed.further_picture", len(document.media[name]), f"{document.where} (.{name})")
    raw = document.media[extensions[0]]
    try:
        document.media = {check(raw): raw}
    except NotAPicture as reason:
        tally.add("removed.no_picture", len(raw), f"{document.where} ({reason})")
        return False
    return True
