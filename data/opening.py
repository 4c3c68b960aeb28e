"""Files as streams of bytes: local or remote, compressed or not.

However much a compressed file grows, a read returns no more than was asked for, and the decoder's own memory
is bounded; `bounded_line` does the same for lines.
"""

import bz2
import contextlib
import gzip
import io
import lzma
from collections.abc import Iterator
from typing import IO, Any

# The memory a decoder may take: `xz -9` needs 65 MiB, `zstd --ultra -22` 128.
_DECODER_BYTES = 256 << 20
_CHUNK = 1 << 16
_REMOTE_BYTES = 1 << 20
_SKIP = 1 << 20
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60  # of a web server


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, decompressed by its suffix (.gz, .zst, .bz2, .xz)."""
    raw: Any
    if "://" in path:
        import fsspec

        # Buffered here: fsspec's own files read lines without a limit.
        raw = io.BufferedReader(fsspec.open(path, "rb", **store_options(path)).open(), _REMOTE_BYTES)
    else:
        raw = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    name = path.lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        # Arrow's reader: that of the package zstandard takes a file that was cut short for a whole one.
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd"))
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    if name.endswith(".xz"):
        return io.BufferedReader(_Xz(raw))
    return raw


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn every error into RuntimeError, one line that names the file: each store has its own exceptions."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RuntimeError(f"{path} cannot be read: {reason}") from None


def store_options(url: str) -> dict[str, Any]:
    """Options for fsspec to open a URL with: for a web server, how long it may be silent.

    The client's own limit is five minutes for a whole answer, too short for a large file on a slow line.
    """
    if not url.startswith(("http://", "https://")):
        return {}
    try:
        from aiohttp import ClientTimeout
    except ImportError:  # fsspec says what to install
        return {}
    timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def bounded_line(stream: IO[bytes], limit: int) -> tuple[bytes, int]:
    """Read a line; return (line with its end, its bytes).

    Of a line with more than `limit` bytes only the beginning is returned; the stream is after its end all the
    same.
    """
    line = stream.readline(limit + 1)
    size = len(line)
    if size <= limit or line.endswith(b"\n"):
        return line, size
    line = line[:_CHUNK]
    while more := stream.readline(_SKIP):
        size += len(more)
        if more.endswith(b"\n"):
            break
    return line, size


def line_after(stream: IO[bytes], offset: int, end: int) -> int:
    """Move to the first line that begins at `offset` or later, and return its offset.

    It depends on `offset` alone, so that two neighbouring ranges agree on the line between them. Where no
    line begins before `end`, the result is some place from `end` on.
    """
    stream.seek(offset - 1)
    at = offset - 1
    while at < end and (part := stream.readline(_SKIP)):
        at += len(part)
        if part.endswith(b"\n"):
            break
    return at


class _Xz(io.RawIOBase):
    """The streams of an .xz file, decompressed with bounded memory.

    The standard library's reader has no limit: the file chooses the decoder's memory, up to 4 GiB.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(memlimit=_DECODER_BYTES)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with decompressed bytes; raise EOFError where the file is cut short."""
        while True:
            data = b""
            if self._decoder.eof:
                # Streams may follow one another, with zeros between them.
                data = self._decoder.unused_data.lstrip(b"\0") or self._raw.read(_CHUNK).lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_DECODER_BYTES)
            elif self._decoder.needs_input and not (data := self._raw.read(_CHUNK)):
                raise EOFError("the file ends within an xz stream: cut short?")
            if unpacked := self._decoder.decompress(data, len(buffer)):
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)
