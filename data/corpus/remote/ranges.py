"""Reading documents of a remote shard by range, each checked whenever its bytes arrive.

A request fetches about REQUEST_BYTES: a *group* of neighbouring small documents, or a *part* of a large one.

    documents    |a|b|c|   d   |            e             |f|g|
    requests     |group 0|     |part 0 | part 1 | part 2  |group|     (d is a group by itself)

What was fetched is kept for a while, up to KEPT_BYTES. What has to be fetched again is checked again, for a
server, a proxy or a line may change bytes at any time: the documents of a group against the index, a part
of a large document against the hash it had when the whole document last agreed with the index.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
import xxhash

from data.corpus.manifest import CRC, OFFSET, TOKENS
from data.corpus.remote.fetching import ARRIVALS, arrivals

REQUEST_BYTES = 1 << 18
KEPT_BYTES = 1 << 26  # of each corpus, beside the group or part that was fetched last


class RemoteDocuments:
    """The documents of a corpus's remote shards.

    fetch: (shard, first byte, end) → the bytes, by one request, tried again where it fails.
    index: shard → its index, uint64 [4, documents].
    token_bytes: bytes of one id.
    name: shard → its path or URL, for messages.
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
        self._tables: weakref.WeakValueDictionary[int, _Table] = weakref.WeakValueDictionary()
        self._arrivals: dict[int, _Arrivals] = {}

    def open(self, shard: int) -> RangeView:
        """A shard, to be sliced like bytes. Where its documents are is known for as long as a view of it is
        there.
        """
        table = self._tables.get(shard)
        if table is None:
            table = _Table(shard, self._index(shard), self._token_bytes)
            table.arrivals = self._arrivals.setdefault(shard, _Arrivals(len(table.group_starts) - 1))
            self._tables[shard] = table
        return RangeView(self, table)

    def read(self, table: _Table, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a shard.

        Bytes inside a document are checked. Where a document was right before and stays wrong now, raises
        RuntimeError. A document that was never right is returned as it arrives: the caller checks it too, and
        reports it. Bytes outside documents (a tar header) are fetched without a check.
        """
        if begin == end:  # a document without tokens needs no request
            return b""
        shard = table.shard
        document = table.document_at(begin, end)
        if document is None:
            return self._fetch(shard, begin, end)
        first = int(table.begin[document])
        if table.end[document] - first > REQUEST_BYTES:
            return self._read_large(table, document, begin, end)
        group = int(table.group[document])
        raw = self._recall((shard, group)) or self._keep((shard, group), self._fetch_group(table, group))
        start = int(table.begin[table.group_starts[group]])
        return raw[begin - start : end - start]

    def _fetch_group(self, table: _Table, group: int) -> bytes:
        """The bytes of a group. Only documents that were wrong in each arrival so far are wrong in them."""
        documents = range(int(table.group_starts[group]), int(table.group_starts[group + 1]))
        start, end = int(table.begin[documents[0]]), int(table.end[documents[-1]])
        wrong: set[int] = set(documents)  # in every arrival so far
        for arrival in arrivals(2 * ARRIVALS):
            raw = self._fetch(table.shard, start, end)
            spans = ((d, int(table.begin[d]) - start, int(table.end[d]) - start) for d in documents)
            bad = {d for d, a, b in spans if zlib.crc32(raw[a:b]) != table.crc[d]}
            wrong &= bad
            if bad <= table.arrivals.damaged or (arrival + 1 >= ARRIVALS and bad == wrong):
                break
        else:
            raise RuntimeError(
                f"shard {self._name(table.shard)}, bytes {start} to {end}: they came otherwise each of "
                f"{2 * ARRIVALS} times: see to the server or the line; the same command goes on"
            )
        if table.arrivals.arrived[group] and (now_wrong := wrong - table.arrivals.damaged):
            raise self._changed(table, min(now_wrong))
        table.arrivals.damaged |= wrong
        table.arrivals.arrived[group] = True
        return raw

    def _changed(self, table: _Table, document: int) -> RuntimeError:
        """The error for a document that was right before and is wrong now."""
        return RuntimeError(
            f"shard {self._name(table.shard)}: the document at byte {table.begin[document]} came right "
            f"before and came wrong {ARRIVALS} times now: the file was changed or damaged during the run; "
            "restore it"
        )

    def _read_large(self, table: _Table, document: int, begin: int, end: int) -> bytes:
        first = int(table.begin[document])
        if document not in table.arrivals.hashes:
            self._check_large(table, document)
        parts = range((begin - first) // REQUEST_BYTES, (max(begin, end - 1) - first) // REQUEST_BYTES + 1)
        raw = b"".join(self._part(table, document, part) for part in parts)
        start = first + parts[0] * REQUEST_BYTES
        return raw[begin - start : end - start]

    def _check_large(self, table: _Table, document: int) -> None:
        """Fetch a large document once, part by part, and note the hash of each part."""
        for _ in arrivals():
            crc, hashes = 0, []
            for part in range(table.parts(document)):
                raw = self._fetch(table.shard, *table.span(document, part))
                crc = zlib.crc32(raw, crc)
                hashes.append(xxhash.xxh3_64_intdigest(raw))
                self._keep((table.shard, document, part), raw)
            if crc == table.crc[document]:
                break
        else:
            table.arrivals.damaged.add(document)
        table.arrivals.hashes[document] = np.array(hashes, dtype=np.uint64)

    def _part(self, table: _Table, document: int, part: int) -> bytes:
        key = (table.shard, document, part)
        if (kept := self._recall(key)) is not None:
            return kept
        for _ in arrivals():
            raw = self._fetch(table.shard, *table.span(document, part))
            if (
                document in table.arrivals.damaged
                or xxhash.xxh3_64_intdigest(raw) == table.arrivals.hashes[document][part]
            ):
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

    def __init__(self, documents: RemoteDocuments, table: _Table) -> None:
        self._documents, self._table = documents, table

    @property
    def view(self) -> RangeView:
        """The shard itself: slicing it fetches the bytes."""
        return self

    def version(self) -> int:
        """Always 0: bytes are checked when they arrive, and a document that changed raises."""
        return 0

    def __getitem__(self, span: slice) -> memoryview:
        return memoryview(self._documents.read(self._table, span.start, span.stop))


class _Arrivals:
    """Which documents of a shard were right when they came: kept to the end, a few bytes a request.

    arrived: which groups were fetched before, bool [groups].
    damaged: documents that were wrong in every arrival.
    hashes: large document → xxh3_64 of each of its parts, when it last agreed with the index.
    """

    def __init__(self, groups: int) -> None:
        self.arrived = np.zeros(groups, dtype=bool)
        self.damaged: set[int] = set()
        self.hashes: dict[int, np.ndarray] = {}


class _Table:
    """Where the documents of a shard are, how requests group them, and which of them were right.

    shard: its number.
    begin, end, crc: bytes [begin, end) of each document's ids, and their CRC-32, int64 [documents].
    group: the group of each document, int64 [documents]; a large one is alone in its group.
    group_starts: the first document of each group, and the end, int64 [groups + 1].
    arrivals: which of them were right.
    """

    arrivals: _Arrivals

    def __init__(self, shard: int, index: np.ndarray, token_bytes: int) -> None:
        self.shard = shard
        self.begin = index[OFFSET].astype(np.int64)
        self.end = self.begin + index[TOKENS].astype(np.int64) * token_bytes
        self.crc = index[CRC].astype(np.int64)
        cell = self.begin // REQUEST_BYTES
        large = self.end - self.begin > REQUEST_BYTES
        starts = np.ones(len(cell), dtype=bool)
        starts[1:] = (np.diff(cell) > 0) | large[1:] | large[:-1]
        self.group = np.cumsum(starts) - 1
        self.group_starts = np.append(np.flatnonzero(starts), len(cell))

    def document_at(self, begin: int, end: int) -> int | None:
        """The document that bytes [begin, end) are inside; None where they are not inside a document."""
        document = int(np.searchsorted(self.begin, begin, side="right")) - 1
        return document if document >= 0 and end <= self.end[document] else None

    def parts(self, document: int) -> int:
        """How many parts a large document has."""
        return -(-int(self.end[document] - self.begin[document]) // REQUEST_BYTES)

    def span(self, document: int, part: int) -> tuple[int, int]:
        """The bytes [first, end) of a part."""
        first = int(self.begin[document]) + part * REQUEST_BYTES
        return first, min(first + REQUEST_BYTES, int(self.end[document]))
