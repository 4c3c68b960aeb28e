"""The batch step's standard error: a file beside the run folder, on a disk that may hang."""

import collections
import contextlib
import os
import threading
from collections.abc import Iterator

HELD_BYTES = 64 << 20  # of what the file does not take for now; the first of it is dropped beyond
END_SECONDS = 2.0  # in which the file has to take what waits at the end


@contextlib.contextmanager
def written_by_a_thread() -> Iterator[None]:
    """Inside the block, what this process writes on standard error waits for no disk."""
    file, (reader, writer) = os.dup(2), os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    waiting = _Waiting()
    threading.Thread(target=_take, args=(reader, waiting), name="output taken", daemon=True).start()
    written = threading.Thread(target=_write, args=(file, waiting), name="output written", daemon=True)
    written.start()
    try:
        yield
    finally:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # nobody holds the pipe's other end any more: `_take` comes to its end
        os.close(nowhere)
        written.join(END_SECONDS)
        if not written.is_alive():
            os.dup2(file, 2)
            os.close(file)


class _Waiting:
    """Chunks that are not written yet."""

    def __init__(self) -> None:
        self._chunks: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def add(self, chunk: bytes) -> None:
        with self._changed:
            self._chunks.append(chunk)
            self._bytes += len(chunk)
            while self._bytes > HELD_BYTES:
                self._bytes -= len(self._chunks.popleft())
            self._changed.notify()

    def take(self) -> bytes:
        """Wait for a chunk, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks)
            chunk = self._chunks.popleft()
            self._bytes -= len(chunk)
            return chunk


def _take(reader: int, waiting: _Waiting) -> None:
    while chunk := os.read(reader, 1 << 16):
        waiting.add(chunk)
    waiting.add(b"")  # the end
    os.close(reader)


def _write(file: int, waiting: _Waiting) -> None:
    while chunk := waiting.take():
        with contextlib.suppress(OSError):  # a disk that is full
            while chunk:
                chunk = chunk[os.write(file, chunk) :]
