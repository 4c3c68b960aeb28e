"""What the work on any unit needs to know, and what both passes over a unit share."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from common.files import write_atomically
from data.prepare.readers.document import Document
from data.prepare.readers.readers import documents
from data.prepare.recipe import Recipe
from data.prepare.report.tally import Tally
from data.prepare.sources.sources import InputFile, matches
from data.prepare.units import Unit

# The two sides of a corpus.
TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Job:
    """`scratch`: the folder of unfinished work. `surveyed`: a first pass cleans the documents into a
    spool.
    """

    scratch: Path
    recipe: Recipe
    heldout: float
    surveyed: bool

    @property
    def tokenizer(self) -> Path:
        """Where the corpus's tokenizer lies while the corpus is made."""
        return self.scratch / "tokenizer.json"

    @property
    def evaluation(self) -> Path:
        """The n-grams of the evaluation files that the corpus must not share."""
        return self.scratch / "evaluation.npy"

    def record(self, unit: Unit, phase: str) -> Path:
        """The file that says that a phase of a unit is done."""
        return self.scratch / phase / f"{unit.number:06d}.json"


def unit_documents(job: Job, unit: Unit, tally: Tally) -> Iterator[Document]:
    """All documents of a unit as its files hold them; where the end of a file is held out, a document that
    is the whole file comes as the part before and the part that is.
    """
    for piece in unit.pieces:
        for document in documents(piece, job.recipe, tally):
            if job.recipe.heldout_by == "position" and job.heldout:
                yield from _by_position(document, piece.file, job.heldout)
            else:
                yield document


def _by_position(document: Document, file: InputFile, share: float) -> Iterator[Document]:
    if "offset" in document.origin:
        if document.origin["offset"] >= file.bytes * (1 - share):
            document.origin["side"] = HELDOUT
        yield document
        return
    text = document.text
    cut = round(len(text) * (1 - share))
    # Where a line begins near there, or else a word: the first after, or else the last before.
    near = range(max(1, cut - (len(text) - cut) // 2), min(len(text), cut + (len(text) - cut) // 2 + 1))
    places = [
        place
        for end in "\n "
        for place in (text.find(end, cut) + 1, text.rfind(end, 0, cut) + 1)
        if place in near
    ]
    cut = places[0] if places else cut
    for part, more in ((text[:cut], {}), (text[cut:], {"character": cut, "side": HELDOUT})):
        if part:
            yield Document(part, document.origin | more)


def is_heldout(document: Document, job: Job) -> bool:
    """A pure function of the document (or the file it is in), so it holds whatever else the corpus has."""
    recipe = job.recipe
    if recipe.heldout_match:
        return matches(document.origin["path"], recipe.heldout_match)
    if not job.heldout:
        return False
    if recipe.heldout_by == "position":
        return document.origin.get("side") == HELDOUT
    if recipe.heldout_by == "file":
        identity = f"{document.origin['source']}/{document.origin['path']}".encode()
    else:
        identity = content(document)
    return is_heldout_identity(identity, job.heldout)


def is_heldout_identity(identity: bytes, share: float) -> bool:
    """Is a document, or a file, of this identity among the share that is held out?"""
    return xxhash.xxh3_64_intdigest(identity, seed=1) < share * 2**64


def content(document: Document) -> bytes:
    """What makes two documents the same one."""
    given = document.ids.astype("<i8").tobytes() if document.ids is not None else document.text.encode()
    return given + b"".join(document.media[extension] for extension in sorted(document.media))


def write_json(path: Path, value: Any) -> None:
    """Create or replace a JSON file in one step, durably."""
    write_atomically(path, json.dumps(value).encode(), draft=path.with_name(f"{path.name}.tmp"))
