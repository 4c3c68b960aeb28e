"""Reading documents of a remote shard by range, each checked whenever its bytes arrive.

Bytes are fetched in *pieces*: neighbouring small documents together, large ones cut up. What was fetched is
kept for a while, up to a limit. A piece that has to be fetched again is checked again, for a server, a proxy
or a line may change bytes at any time: the small documents in it against the index, a part of a large one
against the hash it had when the whole document last agreed with the index.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache

import numpy as np
import xxhash

from common.retry import attempts
from data.corpus.manifest import CRC, OFFSET, TOKENS

PIECE_BYTES = 1 << 18
KEPT_BYTES = 1 << 26  # of each corpus, beside the one that was fetched last
ARRIVALS = 3  # how often a piece is asked for before what it holds is called damaged
PAUSE_SECONDS = 0.25  # before the second time; doubled before each further one


class RemoteDocuments:
    """The documents of a corpus's remote shards.

    `fetch`: (shard, first byte, end) → the bytes, by one request, tried again where it fails. `index`: shard
    → its index. `token_bytes`: of one id. `name`: shard → what messages call it.
    """

    def __init__(
        self,
        fetch: Callable[[int, int, int], bytes],
        index: Callable[[int], np.ndarray],
        token_bytes: int,
        name: Callable[[int], str],
    ) -> None:
        self._fetch, self._index, self._token_bytes, self._name = fetch, index, token_bytes, name
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._tables = lru_cache(maxsize=None)(self._table)

    def open(self, shard: int) -> RangeView:
        """A shard, to be sliced like bytes."""
        return RangeView(self, shard)

    def read(self, shard: int, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a shard.

        Inside a document they are checked: a document that was right once raises RuntimeError where it stays
        wrong now; one that was never right is handed over as it comes, for the caller has its checksum too.
        Other bytes (a tar header) are fetched as they are.
        """
        if begin == end:  # a document without tokens; no request asks for nothing
            return b""
        table = self._tables(shard)
        document = table.document_at(begin, end)
        if document is None:
            return self._fetch(shard, begin, end)
        first = int(table.begin[document])
        if table.end[document] - first > PIECE_BYTES:
            return self._read_large(table, document, begin, end)
        group = int(table.group[document])
        raw = self._recall((shard, group)) or self._keep((shard, group), self._fetch_group(table, group))
        start = int(table.begin[table.group_starts[group]])
        return raw[begin - start : end - start]

    def _table(self, shard: int) -> _Table:
        return _Table(shard, self._index(shard), self._token_bytes)

    def _fetch_group(self, table: _Table, group: int) -> bytes:
        """A run of small documents, none of them wrong but those that never came right."""
        documents = range(int(table.group_starts[group]), int(table.group_starts[group + 1]))
        start, end = int(table.begin[documents[0]]), int(table.end[documents[-1]])
        wrong: set[int] = set(documents)  # every time so far
        for arrival in attempts(2 * ARRIVALS, PAUSE_SECONDS):
            raw = self._fetch(table.shard, start, end)
            spans = ((d, int(table.begin[d]) - start, int(table.end[d]) - start) for d in documents)
            bad = {d for d, a, b in spans if zlib.crc32(raw[a:b]) != table.crc[d]}
            wrong &= bad
            if bad <= table.damaged or (arrival + 1 >= ARRIVALS and bad == wrong):
                break
        else:
            raise RuntimeError(
                f"shard {self._name(table.shard)}, bytes {start} to {end}: they came otherwise each of "
                f"{2 * ARRIVALS} times: see to the server or the line; the same command goes on"
            )
        if table.arrived[group] and (now_wrong := wrong - table.damaged):
            raise self._changed(table, min(now_wrong))
        table.damaged |= wrong
        table.arrived[group] = True
        return raw

    def _changed(self, table: _Table, document: int) -> RuntimeError:
        """What to raise where a document that was right comes wrong."""
        return RuntimeError(
            f"shard {self._name(table.shard)}: the document at byte {table.begin[document]} came right "
            f"before and came wrong {ARRIVALS} times now: the file was changed or damaged during the run; "
            "restore it"
        )

    def _read_large(self, table: _Table, document: int, begin: int, end: int) -> bytes:
        first = int(table.begin[document])
        if document not in table.hashes:
            self._check_large(table, document)
        parts = range((begin - first) // PIECE_BYTES, (max(begin, end - 1) - first) // PIECE_BYTES + 1)
        raw = b"".join(self._part(table, document, part) for part in parts)
        start = first + parts[0] * PIECE_BYTES
        return raw[begin - start : end - start]

    def _check_large(self, table: _Table, document: int) -> None:
        """Read a large document once, part by part, and note the hash of each part."""
        for _ in attempts(ARRIVALS, PAUSE_SECONDS):
            crc, hashes = 0, []
            for part in range(table.parts(document)):
                raw = self._fetch(table.shard, *table.span(document, part))
                crc = zlib.crc32(raw, crc)
                hashes.append(xxhash.xxh3_64_intdigest(raw))
                self._keep((table.shard, document, part), raw)
            if crc == table.crc[document]:
                break
        else:
            table.damaged.add(document)
        table.hashes[document] = np.array(hashes, dtype=np.uint64)

    def _part(self, table: _Table, document: int, part: int) -> bytes:
        key = (table.shard, document, part)
        if (kept := self._recall(key)) is not None:
            return kept
        for _ in attempts(ARRIVALS, PAUSE_SECONDS):
            raw = self._fetch(table.shard, *table.span(document, part))
            if document in table.damaged or xxhash.xxh3_64_intdigest(raw) == table.hashes[document][part]:
                return self._keep(key, raw)
        raise self._changed(table, document)

    def _recall(self, key: Hashable) -> bytes | None:
        with self._lock:
            raw = self._kept.get(key)
            if raw is not None:
                self._kept.move_to_end(key)
            return raw

    def _keep(self, key: Hashable, raw: bytes) -> bytes:
        with self._lock:
            self._kept_bytes += len(raw) - len(self._kept.pop(key, b""))
            while self._kept and self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
            self._kept[key] = raw
        return raw


class RangeView:
    """A remote shard that is sliced like bytes; see `data.corpus.storage.ShardBytes`."""

    def __init__(self, documents: RemoteDocuments, shard: int) -> None:
        self._documents, self._shard = documents, shard

    @property
    def view(self) -> RangeView:
        """Itself."""
        return self

    def version(self) -> int:
        """Always the same: bytes are checked when they arrive, and those that change raise."""
        return 0

    def __getitem__(self, span: slice) -> memoryview:
        return memoryview(self._documents.read(self._shard, span.start, span.stop))


class _Table:
    """Where the documents of a shard are, in which piece each small one lies, and what is known of them.

    `group`: document → its piece; `group_starts`: piece → its first document, and the end. `arrived`: which
    pieces came before; `damaged`: documents that never came right; `hashes`: those of a large document's
    parts.
    """

    def __init__(self, shard: int, index: np.ndarray, token_bytes: int) -> None:
        self.shard = shard
        self.begin = index[OFFSET].astype(np.int64)
        self.end = self.begin + index[TOKENS].astype(np.int64) * token_bytes
        self.crc = index[CRC].astype(np.int64)
        cell = self.begin // PIECE_BYTES
        large = self.end - self.begin > PIECE_BYTES
        starts = np.ones(len(cell), dtype=bool)
        starts[1:] = (np.diff(cell) > 0) | large[1:] | large[:-1]
        self.group = np.cumsum(starts) - 1
        self.group_starts = np.append(np.flatnonzero(starts), len(cell))
        self.arrived = np.zeros(len(self.group_starts) - 1, dtype=bool)
        self.damaged: set[int] = set()
        self.hashes: dict[int, np.ndarray] = {}

    def document_at(self, begin: int, end: int) -> int | None:
        """The document that the bytes [begin, end) are part of; None where they are not of one."""
        document = int(np.searchsorted(self.begin, begin, side="right")) - 1
        return document if document >= 0 and end <= self.end[document] else None

    def parts(self, document: int) -> int:
        """How many parts a large document is cut into."""
        return -(-int(self.end[document] - self.begin[document]) // PIECE_BYTES)

    def span(self, document: int, part: int) -> tuple[int, int]:
        """The bytes [first, end) of a part."""
        first = int(self.begin[document]) + part * PIECE_BYTES
        return first, min(first + PIECE_BYTES, int(self.end[document]))
