"""The work on one unit: read, clean, leave out duplicates, tokenise, write shards.

    unit → documents → batches of 512 KiB of text → token ids → OUT/.prepare/units/NNNNNN-SSSS.train.tar
                                                              → …/NNNNNN-SSSS.heldout.tar

NNNNNN is the unit, SSSS a segment: the shards of both sides that are closed together, when either is full.
"""

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.corpus.columns import FIRST_TEXT
from data.corpus.shards import TokenShardWriter
from data.prepare.cleaning import clean
from data.prepare.document import Document
from data.prepare.preparation import (
    HELDOUT,
    TRAIN,
    Preparation,
    attempt_folder,
    is_heldout,
    unit_documents,
    write_json,
)
from data.prepare.report.composition import Profile
from data.prepare.survey import surviving
from data.prepare.tally import Tally
from data.prepare.tasks.rows import Row, rows_of
from data.prepare.units import Advance, Unit
from data.tokenizer.encoder import Encoder
from data.tokenizer.loading import load, separator_id


def cleaned_documents(preparation: Preparation, unit: Unit) -> Iterator[Document]:
    """Yield the documents of a unit that will be in the corpus, to train a tokenizer on them."""
    if preparation.surveyed:
        for _, document in surviving(preparation, unit):
            yield document
        return
    keep, tally = clean.cleaner(preparation.recipe, preparation.evaluation), Tally()
    for document in unit_documents(preparation, unit, tally):
        if keep(document, tally):
            yield document


def encode_unit(preparation: Preparation, unit: Unit, advance: Advance) -> None:
    """Write the shards of one unit, and its record last. Finished segments of a killed attempt are kept."""
    record = preparation.record(unit, "units")
    if record.exists():
        advance(-1)
        return
    with attempt_folder(record) as folder:
        write_json(record, {"segments": _encoded(preparation, unit, folder, advance)})
    advance(-1)


def _encoded(preparation: Preparation, unit: Unit, folder: Path, advance: Advance) -> list[dict[str, Any]]:
    """Write the shards of a unit; return the records of its segments. `folder`: for unfinished files."""
    segments = _Segments(preparation, unit, folder)
    tally = Tally()
    keep = clean.cleaner(preparation.recipe, preparation.evaluation)
    if preparation.surveyed:
        stream = surviving(preparation, unit)
    else:
        stream = enumerate(unit_documents(preparation, unit, tally))
    for ordinal, document in stream:
        size = len(document.text)
        advance(size)
        if ordinal < segments.first:
            continue
        if ordinal == segments.first and segments.records:
            tally.clear()  # of what readers counted up to here: the finished segments' records hold that
        if segments.full:
            segments.seal(ordinal, tally)
        if not preparation.surveyed:
            tally.add("read", size)
            if not keep(document, tally):
                continue
        if preparation.no_tokenizer and (document.text or document.ids is not None):
            raise ValueError(
                f"{document.where} has a text: give the tokenizer with --tokenizer FILE (or bytes), or train "
                "one with --train-tokenizer VOCAB_SIZE; pictures alone need none"
            )
        segments.add(ordinal, document)
        if document.ids is not None and _is_no_text(document.ids, segments.encoder):
            tally.add("noted.ids_of_no_text", 0, document.where)
    segments.seal(-1, tally)
    return segments.records


_ENCODED_AT_ONCE_BYTES = 1 << 19
_MEDIA_AT_ONCE_BYTES = 1 << 23
_LOOKED_AT_IDS = 1024
# Decoded again of a batch. Decoding takes as long as encoding: this is below one per cent of the work, but
# for a segment's first batch, which may be all there is.
_TRIED_DOCUMENTS, _TRIED_BYTES, _TRIED_FIRST_BYTES = 32, 1 << 12, 1 << 15


class _Segments:
    """The segments of one unit: shards of the training and the held-out side, closed together when either is
    full.

    folder: where this attempt at the unit writes a segment, until it is moved among the units' shards.
    encoder: of the corpus's tokenizer.
    records: of the finished segments, those of a killed attempt included.
    first: the ordinal, within the unit, of the first document that is in no finished segment.
    tried: whether a text of the segment was decoded again.
    """

    def __init__(self, preparation: Preparation, unit: Unit, folder: Path) -> None:
        self.preparation = preparation
        self.unit = unit
        self.folder = folder
        self.encoder = _encoder_of(preparation.tokenizer, preparation.recipe.separator)
        self._begin()
        self.records: list[dict[str, Any]] = []
        while (path := self._path("json")).exists():
            self.records.append(json.loads(path.read_text()))
        self.first: int = self.records[-1]["next"] if self.records else 0

    def _begin(self) -> None:
        self.tried = False
        self.noted = Tally()
        self.writers: dict[str, TokenShardWriter] = {}
        self.profiles = {TRAIN: Profile(), HELDOUT: Profile()}
        self.filled = {TRAIN: 0, HELDOUT: 0}
        self.waiting: list[tuple[str, int, Document, int]] = []
        self.waiting_bytes = self.waiting_media_bytes = 0

    def _path(self, suffix: str) -> Path:
        return self.preparation.scratch / "units" / f"{self.unit.number:06d}-{len(self.records):04d}.{suffix}"

    @property
    def full(self) -> bool:
        """Has a side as much text and pictures as a shard holds?"""
        return any(size >= self.preparation.recipe.shard_bytes for size in self.filled.values())

    def add(self, ordinal: int, document: Document) -> None:
        """Add a document to the shard of its side. `ordinal`: its number within the unit."""
        side = HELDOUT if is_heldout(document, self.preparation) else TRAIN
        text_bytes = text_bytes_of(document, self.encoder)
        media_bytes = sum(len(raw) for raw in document.media.values())
        self.filled[side] += text_bytes + media_bytes
        self.waiting.append((side, ordinal, document, text_bytes))
        self.waiting_bytes += text_bytes
        self.waiting_media_bytes += media_bytes
        if self.waiting_bytes >= _ENCODED_AT_ONCE_BYTES or self.waiting_media_bytes >= _MEDIA_AT_ONCE_BYTES:
            self._write()

    def _write(self) -> None:
        """Tokenise all waiting documents, then write them all: document by document, each of the two would
        evict the other's data from the processor's cache.
        """
        plain = [waiting[2].text for waiting in self.waiting if _is_one_text(waiting[2])]
        ids = iter(self.encoder.each(plain))
        rows = [
            [Row(next(ids), document.origin)] if _is_one_text(document) else self._rows_of(document)
            for _, _, document, _ in self.waiting
        ]
        self._check_round_trip([row[0].ids for row in rows])
        for parts, (side, ordinal, document, text_bytes) in zip(rows, self.waiting):
            if side not in self.writers:
                path = self.folder / self._path(f"{side}.tar").name
                self.writers[side] = TokenShardWriter(path, self.encoder.dtype)
            for number, (tokens, origin) in enumerate(parts):
                # The text is counted once, with the first of its parts.
                key = f"{self.unit.number:06d}-{ordinal:09d}" + f"-{number:04d}" * bool(number)
                size = 0 if number else text_bytes
                self.writers[side].add(key, tokens, size, origin, document.media)
                self.profiles[side].add(origin, size, len(tokens))
        self.waiting, self.waiting_bytes, self.waiting_media_bytes = [], 0, 0

    def _rows_of(self, document: Document) -> list[Row]:
        """What the corpus keeps of a document: one row of ids, but several of one with marks that is cut."""
        if document.marks is not None:
            return list(rows_of(document, self.encoder, self.preparation.recipe, self.noted))
        return [Row(self._ids_of(document), document.origin)]

    def _ids_of(self, document: Document) -> NDArray[np.integer]:
        """The ids of a document: given, or those of its text; of two texts, those of one behind the other's,
        and how many the first one has goes into the origin.
        """
        if document.ids is not None:
            return document.ids
        if document.media and not document.text:  # not even what a template puts around a text
            return np.zeros(0, dtype=np.int64)
        ids = self.encoder(document.text)
        if document.second is None:
            return ids
        document.origin[FIRST_TEXT] = len(ids)
        return np.concatenate((ids, self.encoder(document.second)))

    def _check_round_trip(self, ids: list[Any]) -> None:
        """Decode some documents of the batch again, to find a tokenizer that loses text, at little cost: the
        first text, and others spread over the batch while they are short together.
        """
        texts = [
            (place, *waiting)
            for place, waiting in enumerate(self.waiting)
            if waiting[2].ids is None and waiting[2].marks is None and waiting[2].text
        ]
        left = _TRIED_BYTES if self.tried else _TRIED_FIRST_BYTES
        self.tried |= bool(texts)
        for number in range(0, len(texts), 1 + len(texts) // _TRIED_DOCUMENTS):
            place, side, _, document, text_bytes = texts[number]
            if number and text_bytes > left:
                continue
            left -= text_bytes
            first = document.origin.get(FIRST_TEXT)
            came_back = self.encoder.gives_back(document.text, ids[place][:first])
            if document.second is not None:
                came_back &= self.encoder.gives_back(document.second, ids[place][first:])
            self.profiles[side].count_round_trip(came_back, text_bytes, len(ids[place]))

    def seal(self, following: int, tally: Tally) -> None:
        """Close the shards and record the segment. `following`: the ordinal of the first document after the
        segment; −1 where the unit ends.
        """
        self._write()
        tally.merge(self.noted.as_dict())
        writers = sorted(self.writers.items())
        shards = {side: writer.close() for side, writer in writers}
        for shard in shards.values():
            for name in (shard.index_file, shard.file):
                os.replace(self.folder / name, self._path("").with_name(name))
        record = {
            "next": following,
            "shards": {side: asdict(shard) for side, shard in shards.items()},
            "columns": {side: asdict(writer.columns) for side, writer in writers},
            "classes": {side: writer.class_numbers for side, writer in writers},
            "profiles": {side: profile.as_dict() for side, profile in self.profiles.items()},
            "tally": tally.as_dict(),
        }
        tally.clear()
        self._begin()
        if following >= 0:
            write_json(self._path("json"), record)
        self.records.append(record)


def _is_one_text(document: Document) -> bool:
    """Is a single text all that becomes ids of the document?"""
    given = document.ids is not None or document.marks is not None or document.second is not None
    return not given and not (document.media and not document.text)


def text_bytes_of(document: Document, encode: Encoder) -> int:
    """UTF-8 bytes of the document's text, or of both; for given ids, of the text that they stand for.

    Raises ValueError for an id that the tokenizer does not have.
    """
    if document.ids is None:
        texts = (document.text, document.second or "")
        return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    largest, least = (int(document.ids.max()), int(document.ids.min())) if document.ids.size else (0, 0)
    if least < 0 or largest >= encode.vocab:
        wrong = largest if least >= 0 else least
        place = int(np.flatnonzero(document.ids == wrong)[0])
        raise ValueError(
            f"{document.where} holds token id {wrong}, the tokenizer has {encode.vocab}: give the tokenizer "
            f"that made the ids with --tokenizer (position {place} of the document)"
        )
    return encode.text_bytes(document.ids)


def _is_no_text(ids: NDArray[np.integer], encode: Encoder) -> bool:
    """Do the first ids decode to more than a tenth of U+FFFD, as those of another tokenizer do?"""
    text = encode.tokenizer.decode(ids[:_LOOKED_AT_IDS].tolist(), skip_special_tokens=False)
    return bool(text.count("\ufffd") * 10 > len(text))


def _encoder_of(path: Path, separator: str) -> Encoder:
    """The encoder of a tokenizer file, kept for the process's next units: loading takes long."""
    return _load_encoder(path, separator, path.stat().st_mtime_ns, path.stat().st_ino)


@functools.lru_cache(1)
def _load_encoder(path: Path, separator: str, changed_ns: int, inode: int) -> Encoder:
    tokenizer = load(path)
    return Encoder(tokenizer, separator_id(tokenizer, separator))
