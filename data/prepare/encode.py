"""The work on one unit: read, clean, leave out duplicates, tokenise, write shards."""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.corpus.shards import TokenShardWriter
from data.prepare.cleaning import clean
from data.prepare.job import HELDOUT, TRAIN, Job, is_heldout, unit_documents, write_json
from data.prepare.readers.document import Document
from data.prepare.report.composition import Profile
from data.prepare.report.tally import Tally
from data.prepare.survey import surviving
from data.prepare.units import Unit
from data.prepare.workers import Report
from data.tokenizer.tokenizer import Encoder, load, separator_id


def cleaned_documents(job: Job, unit: Unit) -> Iterator[Document]:
    """The documents of a unit that will be in the corpus, to train a tokenizer on."""
    if job.surveyed:
        for _, document in surviving(job, unit):
            yield document
        return
    keep, tally = clean.cleaner(job.recipe, job.evaluation), Tally()
    for document in unit_documents(job, unit, tally):
        if keep(document, tally):
            yield document


def encode_unit(job: Job, unit: Unit, report: Report) -> None:
    """Writes the shards of one unit, and its record last. Finished shards of a killed attempt are kept."""
    record = job.record(unit, "units")
    if record.exists():
        report(-1)
        return
    segments = _Segments(job, unit)
    tally = Tally()
    keep = clean.cleaner(job.recipe, job.evaluation)
    if job.surveyed:
        stream = surviving(job, unit)
    else:
        stream = enumerate(unit_documents(job, unit, tally))
    reading = True
    for ordinal, document in stream:
        size = len(document.text)
        report(size)
        if ordinal < segments.first:
            continue
        if reading:
            # What was counted on the way here belongs to segments that are finished.
            reading = False
            if segments.first:
                tally.clear()
        if segments.full:
            segments.seal(ordinal, tally)
        if not job.surveyed:
            tally.add("read", size)
            if not keep(document, tally):
                continue
        segments.add(ordinal, document)
        if document.ids is not None and _is_no_text(document.ids, segments.encoder):
            tally.add("noted.ids_of_no_text", 0, document.where)
    segments.seal(-1, tally)
    write_json(record, {"segments": segments.records})
    report(-1)


_ENCODED_AT_ONCE_BYTES = 1 << 19
_LOOKED_AT_IDS = 1024


class _Segments:
    """The shards of one unit, train and held-out side by side; both are sealed when either is full."""

    def __init__(self, job: Job, unit: Unit) -> None:
        self.job = job
        self.unit = unit
        self.encoder = encoder(job.tokenizer, job.recipe.separator)
        self._begin()
        self.records: list[dict[str, Any]] = []
        while (path := self._path("json")).exists():
            self.records.append(json.loads(path.read_text()))
        # The first document that is not in a finished segment.
        self.first: int = self.records[-1]["next"] if self.records else 0

    def _begin(self) -> None:
        self.writers: dict[str, TokenShardWriter] = {}
        self.profiles = {TRAIN: Profile(), HELDOUT: Profile()}
        self.filled = {TRAIN: 0, HELDOUT: 0}
        self.waiting: list[tuple[str, int, Document, int]] = []
        self.waiting_bytes = 0

    def _path(self, suffix: str) -> Path:
        return self.job.scratch / "units" / f"{self.unit.number:06d}-{len(self.records):04d}.{suffix}"

    @property
    def full(self) -> bool:
        """Is it time for the next shard?"""
        return any(size >= self.job.recipe.shard_bytes for size in self.filled.values())

    def add(self, ordinal: int, document: Document) -> None:
        """Takes a document for the shard of its side."""
        side = HELDOUT if is_heldout(document, self.job) else TRAIN
        text_bytes = text_bytes_of(document, self.encoder)
        self.filled[side] += text_bytes
        self.waiting.append((side, ordinal, document, text_bytes))
        self.waiting_bytes += text_bytes
        if self.waiting_bytes >= _ENCODED_AT_ONCE_BYTES:
            self._write()

    def _write(self) -> None:
        """Tokenises what is waiting, then writes it: turn by turn, the two would take the cache from each
        other.
        """
        ids = [
            document.ids if document.ids is not None else self.encoder(document.text)
            for _, _, document, _ in self.waiting
        ]
        self._try_round_trip(ids)
        for tokens, (side, ordinal, document, text_bytes) in zip(ids, self.waiting):
            if side not in self.writers:
                self.writers[side] = TokenShardWriter(self._path(f"{side}.tar"), self.encoder.dtype)
            key = f"{self.unit.number:06d}-{ordinal:09d}"
            self.writers[side].add(key, tokens, text_bytes, document.origin, document.media)
            self.profiles[side].add(document.origin, text_bytes, len(tokens))
        self.waiting, self.waiting_bytes = [], 0

    def _try_round_trip(self, ids: list[Any]) -> None:
        """Whether a tokenizer loses something is found on one document of every batch, at little cost."""
        if self.waiting and self.waiting[0][2].ids is None:
            side, _, document, text_bytes = self.waiting[0]
            self.profiles[side].tried(self.encoder.gives_back(document.text, ids[0]), text_bytes, len(ids[0]))

    def seal(self, following: int, tally: Tally) -> None:
        """Closes the shards and records the segment; `following` is the first document after it."""
        self._write()
        record = {
            "next": following,
            "shards": {side: asdict(writer.close()) for side, writer in sorted(self.writers.items())},
            "profiles": {side: profile.as_dict() for side, profile in self.profiles.items()},
            "tally": tally.as_dict(),
        }
        tally.clear()
        self._begin()
        if following >= 0:
            write_json(self._path("json"), record)
        self.records.append(record)


def text_bytes_of(document: Document, encode: Encoder) -> int:
    """UTF-8 bytes of the text; for ids that were given, of the text they stand for."""
    if document.ids is None:
        return len(document.text) if document.text.isascii() else len(document.text.encode())
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
    """Is more than a tenth of what the first ids stand for no text, as by another tokenizer than theirs?"""
    text = encode.tokenizer.decode(ids[:_LOOKED_AT_IDS].tolist(), skip_special_tokens=False)
    return bool(text.count("\ufffd") * 10 > len(text))


def encoder(path: Path, separator: str) -> Encoder:
    """The encoder of a tokenizer file: one for each process, since loading takes long."""
    return _encoder(path, separator, path.stat().st_mtime_ns, path.stat().st_ino)


@functools.lru_cache(1)
def _encoder(path: Path, separator: str, changed_ns: int, inode: int) -> Encoder:
    tokenizer = load(path)
    return Encoder(tokenizer, separator_id(tokenizer, separator))
