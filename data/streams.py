"""Opens what a source names as a stream of bytes: local or remote, compressed or not."""

import bz2
import gzip
import io
import lzma
from typing import IO, Any


def open_bytes(path: str) -> IO[bytes]:
    """Opens a local path or URL for reading, decompressed."""
    raw: Any
    if "://" in path:
        import fsspec

        raw = fsspec.open(path, "rb").open()
    else:
        raw = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    name = path.lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(raw))
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    return raw


def to_line_start(stream: IO[bytes], offset: int, limit: int) -> None:
    """Moves to the first line that begins at `offset` or later: a function of the offset, so neighbours
    agree.
    """
    stream.seek(offset - 1)
    skipped = stream.readline(limit)
    if skipped.endswith(b"\n") or len(skipped) < limit:
        return
    # No line begins anywhere near: begin at a character instead.
    stream.seek(offset)
    while (byte := stream.read(1)) and 0x80 <= byte[0] < 0xC0:
        pass
    if byte:
        stream.seek(-1, io.SEEK_CUR)


def line_start(path: str, offset: int, limit: int) -> int:
    """Where that line begins."""
    with open_bytes(path) as stream:
        to_line_start(stream, offset, limit)
        return stream.tell()


class _Zstandard(io.RawIOBase):
    """The frames of a zstandard file. The library's own reader takes a file that was cut short for one that
    ended.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._library = zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fed = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with decompressed bytes; raises EOFError where the file is cut short."""
        while not self._ready:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._fed = self._library.ZstdDecompressor().decompressobj(), False
            compressed = compressed or self._raw.read(1 << 17)
            if not compressed:
                if self._fed:
                    raise EOFError("the file ends within a zstandard frame: cut short?")
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._library.ZstdError as error:
                raise OSError(str(error)) from None
            self._fed = not self._frame.eof
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
