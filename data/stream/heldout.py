"""Held-out corpora as batches, document by document."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from data.config import DataConfig, Heldout
from data.corpus.corpus import DamagedDocument, open_corpus
from data.pictures.decoders import DecodedPictures, Decoders
from data.stream.batch import Batch
from data.stream.documents import DocumentReader, DocumentRows
from data.stream.era import check_sequences
from data.stream.images import check_pictures
from data.stream.order import another, derive_key
from data.stream.packing.counting import mend_catalogue
from data.stream.packing.kinds import PACKINGS
from data.stream.rows import NO_TOKEN

_BATCHES_AHEAD = 2  # whose pictures are decoded while another one is evaluated


class HeldoutLoader:
    """A held-out corpus as batches, one document after another; iterating again starts again.

    A document is its separator, its ids and the separator that ends it, as in training, cut into windows of
    `seq_len`; every id and the end are a target exactly once. A window after the first begins with `overlap`
    ids that the one before ended with, as context only: `following` is -1 there. A row holds one document;
    short ones end in padding. All ranks give the same number of batches of one shape: the last ones are
    filled with padding rows (sequence -1, nothing counted).

        a document of 11 ids, seq_len 6, overlap 2 (s: separator, .: padding, -: no target)

        tokens       s 1 2 3 4 5    4 5 6 7 8 9    8 9 10 11 . .
        following    1 2 3 4 5 6    - - 7 8 9 10   - - 11 s  - -

    Where training gives each document a row of its own (data.packing=one, views, pair), so does evaluation.
    With data.image_size the first view of a picture is its centre square; further ones are drawn as in
    training, from the row's number.

    heldout: the corpus and its name.
    seq_len: inputs of a row.
    rank, ranks: this data rank, and their number.
    micro_batch: rows of a batch.
    overlap: ids of context at the start of a window, fewer than seq_len.
    max_documents: the first so many documents alone; 0: all.
    cfg: where a remote corpus is cached (`cache_dir`), the `packing`, and whether each row has a partner
        (`partners`).

    Attributes: `name`; `corpus`; `documents` and `rows`, their numbers; `text_bytes`, the UTF-8 bytes of the
    documents' text: bits per byte = summed loss in nats / ln 2 / text_bytes; 0 where rows leave out a part
    of a document, whose bytes are not known.

    Raises ValueError where the corpus is missing, empty, or gives too few rows; RuntimeError where it is
    damaged.
    """

    def __init__(
        self,
        heldout: Heldout,
        *,
        seq_len: int,
        rank: int,
        ranks: int,
        micro_batch: int,
        overlap: int = 0,
        max_documents: int = 0,
        cfg: DataConfig | None = None,
    ) -> None:
        assert 0 <= overlap < seq_len, (overlap, seq_len)
        self.name = heldout.name or heldout.path
        self._cfg = cfg or DataConfig()
        self.corpus = open_corpus(heldout.path, self._cfg, tell=rank == 0)
        if rank == 0:
            mend_catalogue(self.corpus)
        self._reader = DocumentReader(self.corpus)
        self._rank, self._ranks, self._micro_batch = rank, ranks, micro_batch
        self._seq_len, self._overlap = seq_len, overlap
        lengths, text_bytes = self.corpus.lengths(max_documents or None)
        self.documents = len(lengths)
        # Windows of each document: one, and one more for every seq_len - overlap inputs beyond it.
        inputs = lengths + (lengths > 0)
        windows = np.where(inputs > 0, 1 + np.maximum(0, -(-(inputs - seq_len) // (seq_len - overlap))), 0)
        self._windows, self._lengths, self._text_bytes = windows, lengths, text_bytes
        kind, limit = self._cfg.packing, max_documents or None
        alone = PACKINGS[kind].alone
        self._pictures = self._cfg.image_size > 0
        check_pictures(f"data.heldout: {self.name}", self.corpus, self._cfg)
        self._alone = (
            DocumentRows(self.corpus, self._reader, kind, seq_len, limit, pictures=self._pictures)
            if alone
            else None
        )
        self._count()
        check_sequences(f"data.heldout: {self.name}", self.rows, self._cfg)

    def _count(self) -> None:
        self.text_bytes = 0 if self._alone and self._alone.cut else int(self._text_bytes.sum())
        self._windows_end = np.cumsum(self._windows)
        self.rows = self._alone.rows if self._alone else int(self._windows_end[-1])

    def _document_of(self, numbers: np.ndarray) -> np.ndarray:
        """The document that each of these rows is of, or is a window of."""
        if self._alone:
            return self._alone.document[numbers]
        return np.searchsorted(self._windows_end, numbers, side="right")

    def row_documents(self) -> np.ndarray:
        """The number in the corpus of the document that each row is of, or is a window of, int64 [rows]."""
        return self._document_of(np.arange(self.rows))

    def damaged(self) -> list[tuple[int, DamagedDocument]]:
        """The damaged ones among the documents that this rank reads, by number. Reads them all."""
        mine = np.arange(self.rows) // self._micro_batch % self._ranks == self._rank
        numbers = np.unique(self._document_of(np.flatnonzero(mine)))
        found = ((number, self._damage_of(number)) for number in numbers.tolist())
        return [(number, damage) for number, damage in found if damage]

    def _damage_of(self, number: int) -> DamagedDocument | None:
        damage = self._reader.damage_of(number)
        return self._reader.picture_damage_of(number) if self._pictures and damage is None else damage

    def leave_out(self, documents: list[int]) -> None:
        """Continue as if these documents were not in the corpus. They must be the same on every rank."""
        self._windows[documents] = self._text_bytes[documents] = 0
        if self._alone:
            self._alone.leave_out(documents)
        self.documents -= len(documents)
        self._count()

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self.rows // (self._ranks * self._micro_batch))

    def __iter__(self) -> Iterator[Batch]:
        firsts = [(batch * self._ranks + self._rank) * self._micro_batch for batch in range(len(self))]
        numbers = (np.arange(first, first + self._micro_batch) for first in firsts)
        return self._with_pictures(numbers) if self._pictures else map(self._batch, numbers)

    def _with_pictures(self, numbers: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The batches of these rows; the pictures of some are decoded while another one is used."""
        decoders = Decoders(self._cfg, derive_key("held-out views", self.corpus.manifest.fingerprint), 1)
        try:
            ahead: deque[tuple[Batch, DecodedPictures]] = deque()
            for some in numbers:
                ahead.append((self._batch(some), self._submit(decoders, some)))
                if len(ahead) > _BATCHES_AHEAD:
                    yield self._shown(*ahead.popleft())
            while ahead:
                yield self._shown(*ahead.popleft())
        finally:
            decoders.close()

    def _submit(self, decoders: Decoders, numbers: np.ndarray) -> DecodedPictures:
        """Begin to decode the pictures of some rows."""
        shards: list[Any] = [b""] * len(numbers)
        places = np.zeros((3, len(numbers)), dtype=np.int64)
        real = np.flatnonzero(numbers < self.rows)
        for row, document in zip(real.tolist(), self._document_of(numbers[real]).tolist()):
            shards[row], places[:, row] = self._reader.picture(document)
        return decoders.submit(numbers, shards, places)

    def _shown(self, batch: Batch, pictures: DecodedPictures) -> Batch:
        """The batch with its pictures. Raises RuntimeError where one of them is damaged."""
        for row, reason in pictures.wait().items():
            document = int(self._document_of(np.array(batch.sequences[row])))
            raise RuntimeError(str(self._reader.damaged_picture(document, reason)))
        return Batch(batch.tensors | {"image": torch.from_numpy(pictures.pixels)}, batch.sequences)

    def _batch(self, numbers: np.ndarray) -> Batch:
        arrays = self._rows(numbers)
        if self._cfg.partners:
            key = derive_key("heldout partners", self.corpus.manifest.fingerprint)
            drawn = another(np.minimum(numbers, self.rows - 1), self.rows, key)
            others = self._rows(np.where(numbers < self.rows, drawn, self.rows))
            arrays |= {"partner": others["tokens"], "partner_following": others["following"]}
        named = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(named, tuple(np.where(numbers < self.rows, numbers, -1).tolist()))

    def _rows(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Rows by the names that `Batch` gives them; those from `rows` on are only padding."""
        if self._alone:
            return self._alone.arrays(numbers)
        seq_len, eos = self._seq_len, self.corpus.eos
        tokens = np.full((len(numbers), seq_len), eos, dtype=np.int64)
        following = np.full((len(numbers), seq_len), NO_TOKEN, dtype=np.int64)
        real = np.flatnonzero(numbers < self.rows)
        documents = self._document_of(numbers[real])
        for row, number, document in zip(real.tolist(), numbers[real].tolist(), documents.tolist()):
            before = int(self._windows_end[document - 1]) if document else 0
            begin = (number - before) * (seq_len - self._overlap)
            ids = self._window(document, begin, begin + seq_len + 1)
            context = self._overlap if number > before else 0
            tokens[row, : len(ids) - 1] = ids[:-1]
            following[row, context : len(ids) - 1] = ids[context + 1 :]
        return {"tokens": tokens, "following": following}

    def _window(self, document: int, begin: int, end: int) -> np.ndarray:
        """Places [begin, end) of a document's separator, its ids and the separator that ends it, int64."""
        length = int(self._lengths[document])
        ids = np.full(min(end, length + 2) - begin, self.corpus.eos, dtype=np.int64)
        # Not beyond: of a document with marks, its marks follow.
        inside = self._reader.ids(document, max(0, begin - 1), min(end - 1, length))
        at = int(begin == 0)
        ids[at : at + len(inside)] = inside
        return ids
