"""Documents of pictures, and of WebDataset tars made elsewhere, which are read strictly (`data.corpus.tar`).

Members that could run code when decoded (pickles, `.pt`) are never opened, and no member's name becomes a
path.
"""

import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.mapped_file import map_file
from data.corpus import tar
from data.corpus.columns import CLASS, PICTURES
from data.opening import open_bytes
from data.prepare.document import Document
from data.prepare.readers.json_elements import is_too_deep
from data.prepare.readers.records import class_of, not_a_text, origin_of, too_long, value_at, whole
from data.prepare.recipe import Recipe
from data.prepare.sources.decoding import decode
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange

_NUMBER = re.compile(r"-?\d{1,9}")
_CAPTIONS = ("txt", "text", "caption")
_READ = (*_CAPTIONS, "json", "npy", "cls", *PICTURES)


def image(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield one document for a picture, without a text; its class is its folder's name, if it is in one."""
    file = file_range.file
    with open_bytes(file.path) as stream:
        raw = stream.read(recipe.max_document_bytes + 1)
    if len(raw) > recipe.max_document_bytes:
        tally.add("removed.too_long_document", file.bytes, file.relative)
        return
    folders = file.relative.split("/")[:-1]
    origin = origin_of(file, **({CLASS: folders[-1]} if folders else {}))
    # Cleaning finds the true format by the content.
    yield Document("", origin, media={PICTURES[0]: raw})


def webdataset(file_range: FileRange, recipe: Recipe, tally: Tally) -> Iterator[Document]:
    """Yield a document for each sample."""
    for key, size, members in _samples(file_range.file, recipe.row_bytes):
        where = f"{file_range.file.relative}:{key}"
        if size > recipe.row_bytes:
            tally.add("removed.too_long_document", size, where)
            continue
        document = _sample_document(key, members, file_range.file, recipe, tally)
        if document is None:
            continue
        if too_long(document.text, recipe):
            tally.add("removed.too_long_document", size, where)
            continue
        yield document


def _sample_document(
    key: str, members: dict[str, bytes], file: InputFile, recipe: Recipe, tally: Tally
) -> Document | None:
    document = Document("", origin_of(file, key=key))
    size = sum(len(value) for value in members.values())
    document.media = {extension: value for extension, value in members.items() if extension in PICTURES}
    record: Any = {}
    if "json" in members:
        if is_too_deep(members["json"]):
            tally.add("removed.nested_too_deeply", size, document.where)
            return None
        about = decode(members["json"], recipe, tally, document.where)
        if about is None:
            return None
        try:
            record = json.loads(about)
        except ValueError:
            tally.add("removed.not_json", size, document.where)
            return None
    if isinstance(record, dict):
        for name, value in (("licence", recipe.licence_field), ("language", recipe.language_field)):
            if isinstance(record.get(value), str):
                document.origin[name] = record[value]
        if recipe.label_field:
            document.origin |= class_of(value_at(record, recipe.label_field), tally, document.where)
    if document.media and "cls" in members and CLASS not in document.origin:
        stated = decode(members["cls"], recipe, tally, document.where)
        if stated is None:
            return None
        name = stated.strip()
        document.origin |= class_of(int(name) if _NUMBER.fullmatch(name) else name, tally, document.where)
    if "npy" in members and not document.media:
        document.ids = _array(members["npy"], f"{file.path} sample {key}")
        return document
    return _with_text(document, members, record if isinstance(record, dict) else {}, recipe, tally)


def _with_text(
    document: Document, members: dict[str, bytes], record: dict[str, Any], recipe: Recipe, tally: Tally
) -> Document | None:
    """The document of a sample with its text: that of the field that the command names, of a member, or of
    img2dataset's field; None where it has neither text nor picture.
    """
    size = sum(len(value) for value in members.values())
    named = value_at(record, recipe.text_field)
    found = {extension: members[extension] for extension in _CAPTIONS if extension in members}
    if isinstance(named, str) and (recipe.text_field != Recipe.text_field or not found):
        document.text = whole(named, tally, document.where)
    elif found:
        text = decode(next(iter(found.values())), recipe, tally, document.where)
        if text is None:
            return None
        document.text = text
    elif document.media and isinstance(record.get("caption"), str):
        document.text = whole(record["caption"], tally, document.where)
    if not document.media:
        if str(record.get("status") or "success") != "success":  # as img2dataset states it
            tally.add("removed.not_downloaded", size, f"{document.where} ({record['status']})")
            return None
        if not found and not isinstance(named, str):
            has = f" (members: {', '.join(sorted(members))})"
            tally.add("removed.no_text_in_sample", size, document.where + has)
            return None
    elif not document.text.strip():
        document.text = ""
        tally.add("noted.no_caption", size, document.where + not_a_text(recipe.text_field, named))
    return document


def _samples(file: InputFile, limit: int) -> Iterator[tuple[str, int, dict[str, bytes]]]:
    """Yield (key, size in bytes, extension → bytes) of each sample, of the members that are read.

    Of a sample with more than `limit` bytes only the size is given. A remote tar is fetched whole into a
    temporary file first. Raises RuntimeError or ValueError from `data.corpus.tar`.
    """
    if "://" not in file.path:
        yield from _mapped(Path(file.path), file.path, limit)
        return
    with tempfile.NamedTemporaryFile() as copy, open_bytes(file.path) as remote:
        shutil.copyfileobj(remote, copy)
        copy.flush()
        yield from _mapped(Path(copy.name), file.path, limit)


def _mapped(path: Path, where: str, limit: int) -> Iterator[tuple[str, int, dict[str, bytes]]]:
    view = map_file(path)
    for sample in tar.samples(view, where):
        read = {extension: member for extension, member in sample.members.items() if extension in _READ}
        size = sum(member.size for member in read.values())
        if size > limit:
            read = {}
        yield sample.key, size, {name: bytes(view[m.offset : m.offset + m.size]) for name, m in read.items()}


def _array(raw: bytes, where: str) -> NDArray[np.integer]:
    """The token ids of a `.npy` member, [tokens]. RuntimeError for another shape or a pickled array."""
    try:
        ids = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except ValueError as error:
        raise RuntimeError(f"{where}: .npy cannot be read: {error}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RuntimeError(f"{where}: .npy is {ids.dtype}{list(ids.shape)}, not a 1-D array of token ids")
    return ids
