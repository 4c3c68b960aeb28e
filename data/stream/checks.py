"""Is a document what its checksum says? Each is hashed before its ids are used."""

from __future__ import annotations

import zlib

import numpy as np

from data.corpus.storage import ShardBytes

UNKNOWN, GOOD, DAMAGED = 0, 1, 2

Versions = list[tuple[ShardBytes, int]]
"""(shard, version of its bytes) of some shards."""


class DocumentChecks:
    """Which documents of an era are damaged. A document is hashed on its first use, and again where its shard
    was written to since.

    shards: number of each shard → its bytes.
    shard, begin, end, crc: of each document its shard, its bytes there, and their CRC-32, int64 [documents].
    """

    def __init__(
        self,
        shards: dict[int, ShardBytes],
        shard: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        crc: np.ndarray,
    ) -> None:
        self._shards, self._shard, self._begin, self._end, self._crc = shards, shard, begin, end, crc
        self._state = np.full(len(shard), UNKNOWN, dtype=np.uint8)
        # The versions in which `_state` was found.
        self._checked = {number: opened.version() for number, opened in shards.items()}

    @property
    def versions(self) -> Versions:
        """The shards, and the versions of their bytes that the documents were checked in."""
        return [(opened, self._checked[number]) for number, opened in self._shards.items()]

    def damaged(self, documents: np.ndarray) -> np.ndarray:
        """Which of these documents are damaged, bool [len(documents)]."""
        now = {number: opened.version() for number, opened in self._shards.items()}
        if now != self._checked:
            changed = [number for number, version in now.items() if version != self._checked[number]]
            self._state[np.isin(self._shard, changed)] = UNKNOWN
            self._checked = now
        todo = documents[self._state[documents] == UNKNOWN]
        if todo.size:
            todo = np.unique(todo)
            views = {number: opened.view for number, opened in self._shards.items()}
            places = zip(self._shard[todo].tolist(), self._begin[todo].tolist(), self._end[todo].tolist())
            crcs = [zlib.crc32(views[number][a:b]) for number, a, b in places]
            self._state[todo] = np.where(np.array(crcs) == self._crc[todo], GOOD, DAMAGED)
        return self._state[documents] == DAMAGED
