"""From a stream to the micro-batches of one data rank; and held-out corpora, document by document.

Both run in the process, with one thread that reads ahead: token batches are cheaper to make than to send
between processes.
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

from data.config import DataConfig, Heldout
from data.corpus.corpus import DamagedDocument, open_corpus
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, written_while_read
from data.stream.batch import Batch
from data.stream.documents import Documents
from data.stream.rows import NO_TOKEN, Plan
from data.stream.stream import Stream

GULP_ROWS: Final = 4096  # sequences planned in one call: enough that its fixed cost does not show

CHUNK_TOKENS: Final = 1 << 17  # handed over at once: few switches of threads, and it stays in the cache


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
        self._stream = stream
        self._rank, self._rows = rank, global_batch // ranks
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._gulp = max(1, GULP_ROWS // self._rows)
        self._chunk = max(1, CHUNK_TOKENS // (self._rows * stream.seq_len))
        self._queued = -(-prefetch // self._chunk)
        self._ready: deque[list[Batch]] = deque()
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
        self._queue: queue.Queue[list[list[Batch]] | Exception] = queue.Queue(self._queued)
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
        return self._ready.popleft()

    def close(self) -> None:
        """Stop the thread, wait for it and drop what it read ahead. A second call does nothing."""
        self._closed.set()
        self._ready.clear()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # room for the put it may be waiting in
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def _read_ahead(self, start: int) -> None:
        """Queue the steps from this rank's row `start` on until the loader is closed. In the thread."""
        step, count = 0, 1  # the first step alone, so that it comes soon; then twice as many each time
        most = self._gulp
        again = 0  # how often in a row a step had to be read again
        while not self._closed.is_set():
            try:
                plan = self._plan(start + step * self._global_batch, count)
            except Exception as error:
                if count == 1:
                    self._queue.put(error)
                    return
                # Some step of the gulp fails: deliver the ones before it, one at a time.
                most = count = 1
                continue
            for first in range(0, count, self._chunk):
                if self._closed.is_set():
                    return
                steps = range(first, min(first + self._chunk, count))
                try:
                    ready = [self._batches(plan, i * self._rows) for i in steps]
                    holds = plan.holds()
                except Exception as error:  # a shard that cannot be read any more
                    self._queue.put(error)
                    return
                if not holds:  # a shard was written to: what was just read of it may be anything
                    again, count = again + 1, first
                    time.sleep(READ_AGAIN_PAUSE_SECONDS)
                    break
                self._queue.put(ready)
                again = 0
            if again > READ_AGAIN:
                self._queue.put(written_while_read(f"data.sources {', '.join(self._stream.names)}"))
                return
            step += count
            count = min(2 * max(1, count), most)

    def _plan(self, start: int, count: int) -> Plan:
        """This rank's rows of `count` steps, the first of which begins at sequence `start` on this rank."""
        firsts = start + np.arange(count) * self._global_batch
        return self._stream.plan((firsts[:, None] + np.arange(self._rows)).ravel())

    def _batches(self, plan: Plan, first: int) -> list[Batch]:
        """One step's micro-batches, from the row it begins with."""
        return [self._batch(plan, a) for a in range(first, first + self._rows, self._micro_batch)]

    def _batch(self, plan: Plan, begin: int) -> Batch:
        rows = plan.rows(begin, begin + self._micro_batch, document_mask=self._stream.cfg.document_mask)
        arrays = {"tokens": rows.tokens, "following": rows.following}
        if rows.positions is not None and rows.documents is not None:
            arrays |= {"positions": rows.positions, "documents": rows.documents}
        if len(self._stream.sources) > 1:
            arrays["source"] = plan.source[begin : begin + self._micro_batch]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(tensors, tuple(rows.numbers.tolist()))


class HeldoutLoader:
    """A held-out corpus as batches, one document after another; iterating again starts again.

    A document is its separator, its ids and the separator that ends it, as in training, cut into windows of
    `seq_len`; every id and the end are a target exactly once. A window after the first begins with `overlap`
    ids that the one before ended with, as context only: `following` is -1 there. A row holds one document;
    short ones end in padding. All ranks give the same number of batches of one shape: the last ones are
    filled with padding rows (sequence -1, nothing counted).

    `cfg`: where a remote corpus is cached (`cache_dir`).
    `name`; `documents` (limited by `max_documents`, 0: all); `text_bytes`, the UTF-8 bytes of their text:
    bits per byte = summed loss in nats / ln 2 / text_bytes.
    Raises ValueError when the corpus is missing or empty, RuntimeError when it is damaged.
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
        self.corpus = open_corpus(heldout.path, cfg or DataConfig())
        self._ids = Documents(self.corpus)
        self._rank, self._ranks, self._micro_batch = rank, ranks, micro_batch
        self._seq_len, self._overlap = seq_len, overlap
        lengths, text_bytes = self.corpus.lengths(max_documents or None)
        self.documents = len(lengths)
        self.text_bytes = int(text_bytes.sum())
        # Windows of each document: one, and one more for every seq_len - overlap inputs beyond it.
        inputs = lengths + (lengths > 0)
        windows = np.where(inputs > 0, 1 + np.maximum(0, -(-(inputs - seq_len) // (seq_len - overlap))), 0)
        self._windows, self._lengths, self._text_bytes = windows, lengths, text_bytes
        self._windows_end = np.cumsum(windows)
        self.rows = int(self._windows_end[-1])

    def damaged(self) -> list[tuple[int, DamagedDocument]]:
        """The damaged ones among the documents that this rank reads, by number. Reads them all."""
        mine = np.arange(self.rows) // self._micro_batch % self._ranks == self._rank
        numbers = np.unique(np.searchsorted(self._windows_end, np.flatnonzero(mine), side="right"))
        found = ((number, self._ids.damage_of(number)) for number in numbers.tolist())
        return [(number, damage) for number, damage in found if damage]

    def leave_out(self, documents: list[int]) -> None:
        """Go on as if these documents, the same on every rank, were not in the corpus."""
        self._windows[documents] = self._text_bytes[documents] = 0
        self.documents -= len(documents)
        self.text_bytes = int(self._text_bytes.sum())
        self._windows_end = np.cumsum(self._windows)
        self.rows = int(self._windows_end[-1])

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self.rows // (self._ranks * self._micro_batch))

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            first = (batch * self._ranks + self._rank) * self._micro_batch
            yield self._batch(np.arange(first, first + self._micro_batch))

    def _batch(self, numbers: np.ndarray) -> Batch:
        seq_len, eos = self._seq_len, self.corpus.eos
        tokens = np.full((len(numbers), seq_len), eos, dtype=np.int64)
        following = np.full((len(numbers), seq_len), NO_TOKEN, dtype=np.int64)
        real = numbers < self.rows
        documents = np.searchsorted(self._windows_end, numbers, side="right")
        for row, (number, document) in enumerate(zip(numbers[real].tolist(), documents[real].tolist())):
            before = int(self._windows_end[document - 1]) if document else 0
            begin = (number - before) * (seq_len - self._overlap)
            ids = self._window(document, begin, begin + seq_len + 1)
            context = self._overlap if number > before else 0
            tokens[row, : len(ids) - 1] = ids[:-1]
            following[row, context : len(ids) - 1] = ids[context + 1 :]
        named = {"tokens": torch.from_numpy(tokens), "following": torch.from_numpy(following)}
        return Batch(named, tuple(np.where(real, numbers, -1).tolist()))

    def _window(self, document: int, begin: int, end: int) -> np.ndarray:
        """What stands at [begin, end) of a document's separator, its ids and the separator that ends it."""
        length = int(self._lengths[document])
        ids = np.full(min(end, length + 2) - begin, self.corpus.eos, dtype=np.int64)
        inside = self._ids.ids(document, max(0, begin - 1), end - 1)
        at = int(begin == 0)
        ids[at : at + len(inside)] = inside
        return ids
