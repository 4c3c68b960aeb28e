"""Threads that read, decode and augment the pictures of batches ahead of need.

A batch's pictures are submitted when its rows are made, and waited for when its step begins: by then they
have long been done, if the threads keep up at all. Reading, decoding and scaling run outside of Python's
global lock.
"""

from __future__ import annotations

import os
import queue
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.retry import attempts
from data.config import DataConfig
from data.pictures.augment import View, centre_view, drawn_view, render, uniforms
from data.pictures.decode import NotAPicture, OpenedPicture

MOST_THREADS = 16
_ARRIVALS, _PAUSE_SECONDS = 3, 0.25  # bytes are read so often before they are called damaged
# A JPEG is decoded at a half of its size or less where every crop still has so many times the pixels of its
# view on each side, as Pillow's `thumbnail` does (its reducing_gap).
_SPARE = 2.0
_ROWS_AT_ONCE = 4  # pictures that a thread takes at a time
_WRONG = "its bytes do not have the checksum in the index"

Job = tuple["DecodedPictures", int, int]
"""Rows [first, end) of some pictures."""


@dataclass
class DecodedPictures:
    """The pictures of some rows, which threads are at work on until `wait` returns.

    pixels: uint8 [rows, views, size, size, 3]; zeros where a row has no picture that can be shown.
    shards: the shard of each row, to be sliced like bytes, [rows].
    places: of each row the picture's first byte in its shard, its length and its CRC-32, int64 [3, rows].
        Length 0: the row has no picture.
    draws: the random numbers of each row's views, float64 [rows, views, draws].
    """

    pixels: np.ndarray
    shards: Sequence[Any]
    places: np.ndarray
    draws: np.ndarray
    _left: int = 0
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _damaged: dict[int, str] = field(default_factory=dict)
    _error: Exception | None = None

    def wait(self) -> dict[int, str]:
        """Wait until all are done. Return row → reason, for each picture that cannot be shown.

        Raises the error of a store that a picture could not be read from.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return dict(sorted(self._damaged.items()))

    def finished(self, rows: int, damaged: dict[int, str], error: Exception | None) -> None:
        """Note that a thread is done with some rows."""
        with self._lock:
            self._damaged |= damaged
            self._error = self._error or error
            self._left -= rows
            if self._left <= 0:
                self._done.set()


class Decoders:
    """The threads of one reader of pictures; close them when done.

    cfg: size and number of the views, how they are drawn, and the number of threads.
    key: of the random numbers.
    drawn_from: the first view that is drawn; those before are the centre square.
    """

    def __init__(self, cfg: DataConfig, key: int, drawn_from: int = 0) -> None:
        self._cfg, self._key, self._drawn_from = cfg, key, drawn_from
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        count = cfg.decode_threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._closed = False
        # Daemons: a run that ends does not wait for pictures that it will not see.
        self._threads = [
            threading.Thread(target=self._work, name=f"picture-decoder-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, numbers: np.ndarray, shards: Sequence[Any], places: np.ndarray) -> DecodedPictures:
        """Begin to decode the pictures of some rows.

        numbers: sequence numbers of the rows, int64 [rows].
        shards, places: as in `DecodedPictures`.
        """
        rows, views, size = len(numbers), self._cfg.image_views, self._cfg.image_size
        pixels = np.zeros((rows, views, size, size, 3), dtype=np.uint8)
        wanted = DecodedPictures(pixels, shards, places, uniforms(self._key, numbers, views), _left=rows)
        if not rows:
            wanted.finished(0, {}, None)
        for first in range(0, rows, _ROWS_AT_ONCE):
            self._jobs.put((wanted, first, min(first + _ROWS_AT_ONCE, rows)))
        return wanted

    def close(self) -> None:
        """End the threads, after the pictures that they are at. What was submitted and not begun is dropped:
        nobody may wait for it.
        """
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            wanted, first, end = job
            damaged: dict[int, str] = {}
            error: Exception | None = None
            for row in range(first, end):
                if not wanted.places[1, row]:
                    continue
                try:
                    self._show(wanted, row)
                except NotAPicture as reason:
                    damaged[row] = str(reason)
                except Exception as failed:
                    error = failed
            wanted.finished(end - first, damaged, error)

    def _show(self, wanted: DecodedPictures, row: int) -> None:
        """Decode one picture and write its views. Raises NotAPicture where it is damaged."""
        picture = OpenedPicture(checked_bytes(wanted.shards[row], *wanted.places[:, row].tolist()))
        draws, size = wanted.draws[row], self._cfg.image_size
        views = self._views(draws, picture)
        least = min(min(v.box[2] - v.box[0], v.box[3] - v.box[1]) for v in views)
        opened = (picture.width, picture.height)
        loaded = picture.load(shrink=_SPARE * size / least)
        if (picture.width, picture.height) != opened:  # its end says that it lies on its side
            views = self._views(draws, picture)
        scale = loaded.width / picture.width, loaded.height / picture.height
        for number, view in enumerate(views):
            wanted.pixels[row, number] = render(loaded, view, scale, size)

    def _views(self, draws: np.ndarray, picture: OpenedPicture) -> list[View]:
        width, height = picture.width, picture.height
        return [
            drawn_view(self._cfg.augment, draws[i], width, height)
            if i >= self._drawn_from
            else centre_view(width, height)
            for i in range(self._cfg.image_views)
        ]


def checked_bytes(shard: Any, offset: int, size: int, crc: int) -> bytes:
    """A picture's bytes. Read again where they do not have their checksum: a server, a line or a program that
    writes may have changed them on the way. Raises NotAPicture where they stay wrong.
    """
    for _ in attempts(_ARRIVALS, _PAUSE_SECONDS):
        raw = bytes(shard[offset : offset + size])
        if zlib.crc32(raw) == crc:
            return raw
    raise NotAPicture(_WRONG)
