"""From a stream to the micro-batches of one data rank.

The loader runs in the process, with one thread that reads ahead: token batches are cheaper to make than to
send between processes.

    the thread      locates GULP_ROWS sequences at once, makes CHUNK_TOKENS of them into batches
      │
      ▼  a queue of chunks, `prefetch` steps at least
    `next(loader)`  one step: this rank's micro-batches

With pictures (data.image_size), other threads decode them from the moment when their rows are made; `next`
waits for those of its own step alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, written_while_read
from data.pictures.decoders import DecodedPictures
from data.stream.batch import Batch
from data.stream.images import ImagesAhead
from data.stream.rows import LocatedRows
from data.stream.stream import Stream

GULP_ROWS: Final = 4096  # sequences located in one call: enough that its fixed cost does not show
CHUNK_TOKENS: Final = 1 << 17  # handed over at once: few switches of threads, and a chunk stays in the cache
CHUNK_PIXEL_BYTES: Final = 1 << 25  # or so many bytes of decoded pictures, of which `prefetch` steps are held

Made = tuple[Batch, DecodedPictures | None]
"""A micro-batch, and its pictures, which threads may still be at work on."""


class Loader:
    """Iterates over optimiser steps: each item is this data rank's micro-batches of one step.

    Rank r of n has rows [r·G/n, (r + 1)·G/n) of each global batch of G sequences, cut into micro-batches in
    order. A thread reads steps ahead; an error there is raised by the step that it belongs to. Close the
    loader when done; `seek` opens a closed one again.

    stream: the sequences; a thread of this loader reads them until it is closed.
    rank, ranks: this data rank, and their number.
    global_batch, micro_batch: sequences of a step of all ranks, and of one item of a step's list.
    start: the global number of the first sequence: the whole position of a run.
    prefetch: steps that are read ahead, at least.

    Raises ValueError where `global_batch` is not a multiple of ranks × micro_batch.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        rank: int,
        ranks: int,
        global_batch: int,
        micro_batch: int,
        start: int = 0,
        prefetch: int = 4,
    ) -> None:
        if micro_batch < 1 or global_batch < 1 or global_batch % (ranks * micro_batch):
            raise ValueError(
                f"train.global_batch={global_batch} is not a multiple of {ranks} data ranks × "
                f"train.micro_batch={micro_batch} sequences"
            )
        assert 0 <= rank < ranks, (rank, ranks)
        self._stream, cfg = stream, stream.cfg
        self._images: ImagesAhead | None = None
        self._rank, self._rows = rank, global_batch // ranks
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._gulp = max(1, GULP_ROWS // self._rows)
        self._chunk = max(1, CHUNK_TOKENS // (self._rows * stream.seq_len))
        if cfg.image_size:
            pixel_bytes = self._rows * cfg.image_views * cfg.image_size**2 * 3
            self._chunk = max(1, min(self._chunk, CHUNK_PIXEL_BYTES // pixel_bytes))
        self._queued = -(-prefetch // self._chunk)
        self._ready: deque[list[Made]] = deque()
        self._closed = threading.Event()
        self._start(start)

    def seek(self, sequence: int) -> None:
        """Continue with global sequence `sequence`, as a loader that was made with this `start` does, whether
        this one is closed or not.

        Drops the steps that were read ahead, and empties `stream.quarantined`: it lists the damage in them,
        which is found and listed again when their sequences are read again.
        """
        self.close()
        self._stream.quarantined.clear()
        self._closed.clear()
        self._start(sequence)

    def _start(self, sequence: int) -> None:
        self._queue: queue.Queue[list[list[Made]] | Exception] = queue.Queue(self._queued)
        if self._stream.cfg.image_size:
            self._images = self._stream.images_ahead()
        self._thread = threading.Thread(
            target=self._read_ahead,
            args=(sequence + self._rank * self._rows,),
            name="data-loader",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if not self._ready:
            if self._closed.is_set():
                raise StopIteration
            item = self._queue.get()
            if isinstance(item, Exception):
                self.close()
                raise item
            self._ready.extend(item)
        step = self._ready.popleft()
        if self._images is None:
            return [batch for batch, _ in step]
        try:
            return [self._images.shown(batch, pictures) for batch, pictures in step if pictures is not None]
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop the thread, wait for it and drop what it read ahead. A second call does nothing."""
        self._closed.set()
        self._ready.clear()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # room for the put it may be waiting in
            except queue.Empty:
                self._thread.join(timeout=0.01)
        if self._images is not None:
            self._images.close()
            self._images = None

    def _read_ahead(self, start: int) -> None:
        """Queue the steps from this rank's row `start` on, and the error that ends them. In the thread."""
        try:
            for steps in self._chunks(start):
                self._queue.put(steps)
                if self._closed.is_set():
                    return
        except Exception as error:
            self._queue.put(error)

    def _chunks(self, start: int) -> Iterator[list[list[Made]]]:
        """The steps from this rank's row `start` on, some at a time, until the loader is closed."""
        step, count = 0, 1  # the first step alone, so that it comes soon; then twice as many each time
        most = self._gulp
        again = 0  # how often in a row a step had to be read again
        while not self._closed.is_set():
            try:
                located = self._locate(start + step * self._global_batch, count)
            except Exception:
                if count == 1:
                    raise
                most = count = 1  # one of the steps fails: deliver those before it, one at a time
                continue
            made = 0
            while made < count:
                steps = range(made, min(made + self._chunk, count))
                chunk = [self._batches(located, i * self._rows) for i in steps]
                if (
                    not located.unchanged()
                ):  # a shard was written to: what was just read of it may be anything
                    again += 1
                    break
                yield chunk
                made, again = steps.stop, 0
            if again > READ_AGAIN:
                raise written_while_read(f"data.sources {', '.join(self._stream.names)}")
            if again:
                time.sleep(READ_AGAIN_PAUSE_SECONDS)
            step += made
            count = min(2 * max(1, made), most)

    def _locate(self, start: int, count: int) -> LocatedRows:
        """This rank's rows of `count` steps, the first of which begins at sequence `start` on this rank."""
        firsts = start + np.arange(count) * self._global_batch
        return self._stream.locate((firsts[:, None] + np.arange(self._rows)).ravel())

    def _batches(self, located: LocatedRows, first: int) -> list[Made]:
        """One step's micro-batches, from row `first` on."""
        return [self._batch(located, a) for a in range(first, first + self._rows, self._micro_batch)]

    def _batch(self, located: LocatedRows, begin: int) -> Made:
        end = begin + self._micro_batch
        rows = located.rows(begin, end, document_mask=self._stream.document_mask)
        arrays = rows.named(self._stream.tensors)
        if len(self._stream.sources) > 1:
            arrays["source"] = located.source[begin:end]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        pictures = None if self._images is None else self._images.submit(located, begin, end)
        return Batch(tensors, tuple(rows.numbers.tolist())), pictures
