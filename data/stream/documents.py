"""The documents of a corpus by their number in it, and rows of one document each, for held-out corpora."""

from __future__ import annotations

import time
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

from data.corpus.columns import LABEL
from data.corpus.corpus import Corpus, DamagedDocument
from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, ShardBytes, written_while_read
from data.pictures.decode import NotAPicture
from data.pictures.decoders import checked_bytes
from data.stream.era import NO_CLASS
from data.stream.order import derive_key
from data.stream.packing.alone import Views
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.of_corpus import documents_of
from data.stream.rows import NO_TOKEN, with_marks


class DocumentRows:
    """Rows of one document each, in the order of the documents, as a packing that is `alone` lays them out.
    Crops are drawn from the corpus's fingerprint: they are the same in every evaluation.

    corpus, reader: the corpus, and what reads its documents.
    kind, seq_len: the packing, and the inputs of a row.
    limit: the first so many documents alone; None: all.
    pictures: are the rows those of documents with a picture alone?

    Attributes: `rows`, their number; `document` of each row; `cut`, whether a part of some document is in no
    row.
    """

    def __init__(
        self,
        corpus: Corpus,
        reader: DocumentReader,
        kind: str,
        seq_len: int,
        limit: int | None,
        *,
        pictures: bool = False,
    ) -> None:
        self._reader, self._eos, self._seq_len = reader, corpus.eos, seq_len
        index = corpus.first_documents(limit).astype(np.int64)
        label = corpus.manifest.row(LABEL)
        self._labels = np.full(index.shape[1], NO_CLASS) if label is None else index[label]
        bounds = np.array([0, index.shape[1]])
        key = derive_key("heldout crops", corpus.manifest.fingerprint)
        self._documents = documents_of(corpus.manifest, index, bounds, kind, key, pictures)
        self._kind = PACKINGS[kind]
        self._columns = self._kind.columns(seq_len)
        self._pack()

    def _pack(self) -> None:
        kind = self._kind
        self._packing = kind(self._documents, self._seq_len)
        self.rows = self._packing.windows
        found = self._packing.fragments(np.arange(self.rows))
        whole = found.skip + found.length == 1 + found.stop
        self.document = found.document[:: kind.parts]
        self.cut = kind is Views or not whole.all()

    def leave_out(self, documents: list[int]) -> None:
        """Continue as if these documents were not in the corpus."""
        self._documents.lengths[documents] = 0
        self._pack()

    def arrays(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers by the names that `Batch` gives them; rows from `rows` on are only
        padding.
        """
        parts, columns = self._kind.parts, self._columns
        ids = np.full((len(numbers) * parts, columns + 1), self._eos, dtype=np.int64)
        length = np.zeros(len(ids), dtype=np.int64)
        real = np.flatnonzero(numbers < self.rows)
        found = self._packing.fragments(numbers[real])
        end = np.minimum(found.skip + found.length - 1 + (found.length == columns), found.stop)
        for row, document, begin, stop in zip(
            (real[found.row // parts] * parts + found.row % parts).tolist(),
            found.document.tolist(),
            found.skip.tolist(),
            end.tolist(),
        ):
            ids[row, 1 : 1 + stop - begin] = self._reader.ids(document, begin, stop)
        length[(real[:, None] * parts + np.arange(parts)).ravel()] = found.length
        places = np.arange(columns)
        padding = places >= length[:, None]
        label = np.full(len(numbers), NO_CLASS)
        label[real] = self._labels[self.document[numbers[real]]]
        part = (np.arange(len(ids)) % parts)[:, None]
        arrays = {
            "tokens": ids[:, :-1],
            "following": np.where(padding, NO_TOKEN, ids[:, 1:]),
            "positions": np.where(padding, places - length[:, None], places),
            "documents": padding + 2 * part,
        }
        made = {name: array.reshape(len(numbers), -1) for name, array in arrays.items()} | {
            "length": length if parts == 1 else length.reshape(-1, parts),
            "label": label,
        }
        return made | with_marks(made, columns, self._eos) if self._kind.marked else made


class DocumentReader:
    """Reads the documents of a corpus, by their number in it, whole or in parts.

    A document is hashed when a part of it is read after a part of another document, and again where its shard
    was written to: read in order, a document is hashed once, whatever the number of its parts.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._ends = np.cumsum(corpus.shard_documents)
        storage = corpus.storage
        self._opened = lru_cache(maxsize=1)(lambda shard: (storage.open(shard), storage.index(shard)))
        self._checked: tuple[int, int] | None = None  # the last document that was right, its shard's version

    def ids(self, number: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The ids [begin, end) of a document, int64. Raises RuntimeError where the document is damaged."""
        shard, opened, offset, tokens, _ = self._find(number)
        width = self._corpus.dtype.itemsize
        end = tokens if end is None else min(end, tokens)
        for _ in range(READ_AGAIN):
            version = opened.version()
            if self._checked != (number, version):
                if damage := self.damage_of(number):
                    raise RuntimeError(str(damage))
                self._checked = number, version
            raw = opened.view[offset + begin * width : offset + end * width]
            ids = np.frombuffer(raw, dtype=self._corpus.dtype).astype(np.int64)
            if opened.version() == version:
                return ids
            time.sleep(READ_AGAIN_PAUSE_SECONDS)
        raise written_while_read(self._corpus.shard_path(shard))

    def damage_of(self, number: int) -> DamagedDocument | None:
        """The report on a document where it is damaged, else None."""
        shard, opened, offset, tokens, crc = self._find(number)
        raw = opened.view[offset : offset + tokens * self._corpus.dtype.itemsize]
        return self._corpus.damaged_document(shard, offset) if zlib.crc32(raw) != crc else None

    def picture(self, number: int) -> tuple[Any, tuple[int, int, int]]:
        """(bytes of the shard, (first byte, length, CRC-32)) of a document's picture; length 0: none."""
        shard, place = self._place(number)
        opened, index = self._opened(shard)
        first, size, crc = index[self._corpus.manifest.media_rows, place].tolist()
        return opened.view, (first, size, crc)

    def picture_damage_of(self, number: int) -> DamagedDocument | None:
        """The report on a document whose picture does not have its checksum, else None."""
        view, place = self.picture(number)
        try:
            checked_bytes(view, *place)
        except NotAPicture as error:
            return self.damaged_picture(number, str(error))
        return None

    def damaged_picture(self, number: int, reason: str) -> DamagedDocument:
        """The report on a document whose picture cannot be shown."""
        _, (first, _, _) = self.picture(number)
        shard, _, offset, _, _ = self._find(number)
        return self._corpus.damaged_picture(shard, offset, first, reason)

    def _find(self, number: int) -> tuple[int, ShardBytes, int, int, int]:
        """(shard, its bytes, first byte of the ids in it, ids, their CRC-32) of a document."""
        shard, place = self._place(number)
        opened, index = self._opened(shard)
        offset, tokens, crc = index[[OFFSET, TOKENS, CRC], place].tolist()
        return shard, opened, offset, tokens, crc

    def _place(self, number: int) -> tuple[int, int]:
        """(shard, place in it) of a document."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard - 1] if shard else 0)
