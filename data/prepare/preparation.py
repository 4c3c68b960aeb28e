"""What the work on any unit needs to know, and what both passes over a unit share: its documents, and which
side of the corpus a document is on.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from common.files import fsync_file, write_atomically
from data.prepare.document import Document
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.sources.sources import InputFile, matches
from data.prepare.tally import Tally
from data.prepare.units import Unit

# The two sides of a corpus.
TRAIN, HELDOUT = "train", "heldout"
DRAFT = ".tmp"  # of names of files and folders that an attempt at a task has not finished


class NothingLeft(ValueError):
    """A side of the corpus has no document: the same command on the same files would always end so."""


@dataclass(frozen=True)
class Preparation:
    """One `prepare` as the work on its units sees it; small, since every worker gets a copy.

    scratch: the folder of unfinished work, OUT/.prepare.
    recipe: the settings.
    heldout: the share of documents that is held out, in [0, 1).
    surveyed: are the units cleaned into spools by a first pass (`data.prepare.survey`)?
    no_tokenizer: has the command none, so that every document must be a picture alone?
    """

    scratch: Path
    recipe: Recipe
    heldout: float
    surveyed: bool
    no_tokenizer: bool = False

    @property
    def tokenizer(self) -> Path:
        """The corpus's tokenizer.json while the corpus is made."""
        return self.scratch / "tokenizer.json"

    @property
    def evaluation(self) -> Path:
        """The n-grams of the evaluation files, which the corpus must not share."""
        return self.scratch / "evaluation.npy"

    def record(self, unit: Unit, phase: str) -> Path:
        """The file that is there once a phase ("survey" or "units") of a unit is done."""
        return self.scratch / phase / f"{unit.number:06d}.json"


def unit_documents(preparation: Preparation, unit: Unit, tally: Tally) -> Iterator[Document]:
    """All documents of a unit, as the files hold them.

    Where the end of each file is held out, a document that is the whole file is cut in two: the part before
    that end, and the end.
    """
    for part in unit.ranges:
        for document in documents(part, preparation.recipe, tally):
            if preparation.recipe.heldout_by == "position" and preparation.heldout:
                yield from _by_position(document, part.file, preparation.heldout)
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
    # Cut where a line begins near there, else where a word does: the first after `cut`, else the last before.
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


def is_heldout(document: Document, preparation: Preparation) -> bool:
    """Is the document on the held-out side? A pure function of the document, or of the file it is in: what
    else the corpus holds does not matter.
    """
    recipe = preparation.recipe
    if recipe.heldout_match:
        return matches(document.origin["path"], recipe.heldout_match)
    if not preparation.heldout:
        return False
    if recipe.heldout_by == "position":
        return document.origin.get("side") == HELDOUT
    if recipe.heldout_by == "file":
        identity = f"{document.origin['source']}/{document.origin['path']}".encode()
    else:
        identity = document.content
    return is_heldout_identity(identity, preparation.heldout)


def is_heldout_identity(identity: bytes, share: float) -> bool:
    """Is a document or file with these identifying bytes among the share that is held out?"""
    return xxhash.xxh3_64_intdigest(identity, seed=1) < share * 2**64


def write_json(path: Path, value: Any) -> None:
    """Create or replace a JSON file of the scratch folder in one step, durably."""
    write_atomically(path, json.dumps(value).encode(), draft=_draft(path))


@contextmanager
def rename_into(path: Path) -> Iterator[Path]:
    """Give a name to write to, and rename it to `path` at the end: two attempts at a task, perhaps on two
    machines of which one is thought dead, write the same bytes and never into one file. Its content is on
    disk then, for a mark of the whole step will be.
    """
    draft = _draft(path)
    try:
        yield draft
        fsync_file(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def attempt_folder(record: Path) -> Iterator[Path]:
    """Give a folder beside a task's record, for this attempt's files until they are moved."""
    folder = _draft(record)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_drafts(scratch: Path) -> None:
    """Remove what killed attempts have left."""
    for path in [*scratch.glob(f"*{DRAFT}"), *scratch.glob(f"*/*{DRAFT}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{DRAFT}")
