"""Writes token shards: WebDataset tars whose bytes depend on the documents alone, and their indexes."""

import copy
import functools
import gc
import hashlib
import io
import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.corpus.index import write_index
from data.corpus.manifest import ShardEntry

_BLOCK = 512
# Fields of a ustar header (POSIX.1-1988).
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)


@functools.lru_cache(1 << 16)
def _npy_header(dtype: np.dtype, count: int) -> bytes:
    """What stands before the ids in a .npy file. NumPy takes as long to make it as to write the ids;
    lengths recur.
    """
    buffer = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


@functools.cache
def _webdataset() -> Any:
    """Imported late, since it brings torch along, which costs a second; and many objects that stay: the
    garbage collector would walk them all again and again while documents are collected.
    """
    import webdataset

    gc.collect()
    gc.freeze()
    return webdataset


class _Hashed:
    """A file that is hashed as it is written, so that it need not be read again. `size`: bytes so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


class _Tar(tarfile.TarFile):
    """What `TarWriter` hands its members to, five times as fast as `tarfile` and the same bytes.

    Members of a shard differ in name and size alone, so a header is the first one's with those two and the
    checksum set anew; `tarfile` makes every field of every header from nothing, and keeps them all in memory.
    """

    _template: bytes = b""
    _sum = 0

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        """Appends a member; `fileobj`, a BytesIO, is its `size` bytes."""
        assert isinstance(fileobj, io.BytesIO) and isinstance(self.fileobj, _Hashed)
        name, size = tarinfo.name.encode(), tarinfo.size
        if not self._template:
            blank = copy.copy(tarinfo)
            blank.name, blank.size = "", 0
            header = bytearray(blank.tobuf(tarfile.USTAR_FORMAT))
            header[_SIZE], header[_CHECKSUM] = bytes(12), b" " * 8
            self._template, self._sum = bytes(header), sum(header)
        if len(name) > 100 or size >> 33:  # what one plain header cannot say
            return super().addfile(tarinfo, fileobj)
        octal = b"%011o\0" % size
        checksum = self._sum + sum(name) + sum(octal)
        head, data = self._template, fileobj.getvalue()
        parts = (
            name.ljust(100, b"\0"),
            head[100:124],
            octal,
            head[136:148],
            b"%06o\0 " % checksum,
            head[156:],
            data,
            bytes(-size % _BLOCK),
        )
        self.offset += self.fileobj.write(b"".join(parts))
        return None


class TokenShardWriter:
    """One shard: KEY.npy (ids) and KEY.json (origin), through `webdataset.TarWriter` with fixed time and
    owner.

    `close` fsyncs, renames into place and returns the manifest entry; until then only a `.tmp` file is there.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        webdataset = _webdataset()
        self.path = path
        self.dtype = dtype.newbyteorder("<")
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = open(self._temporary, "wb", buffering=1 << 20)  # noqa: SIM115 (closed in close)
        self._hashed = _Hashed(self._file)
        self._tar = webdataset.TarWriter(
            self._hashed,
            encoder=False,
            compress=False,
            mtime=0,
            user="germinal",
            group="germinal",
            mode=0o644,
        )
        # In place of the tarfile it opened, which is 15 % of the time that tokenising takes.
        self._tar.tarstream = _Tar(None, "w", self._hashed, tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        self._columns: list[tuple[int, int, int, int]] = []

    def add(
        self, key: str, ids: NDArray, text_bytes: int, origin: dict[str, Any], media: dict[str, bytes]
    ) -> None:
        """Appends a document. `key`: unique in the corpus, without a dot."""
        ids = np.ascontiguousarray(ids, dtype=self.dtype)
        npy = _npy_header(self.dtype, ids.size) + ids.tobytes()
        about = json.dumps({**origin, "text_bytes": text_bytes}, ensure_ascii=False).encode()
        members = {"json": about, "npy": npy, **media}
        # TarWriter sorts the extensions; the ids' place in the tar follows from those before them.
        at = self._tar.tarstream.offset
        for extension in sorted(members):
            if extension == "npy":
                break
            at += _BLOCK + len(members[extension]) + -len(members[extension]) % _BLOCK
        self._tar.write({"__key__": key, **members})
        offset = at + _BLOCK + len(npy) - ids.nbytes
        self._columns.append((offset, ids.size, zlib.crc32(ids.data), text_bytes))

    def close(self) -> ShardEntry:
        """Makes the shard durable and whole, index first, and returns its entry."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        index = np.ascontiguousarray(np.array(self._columns, dtype=np.uint64).reshape(-1, 4).T)
        return write_index(self.path, index, self._hashed.digest.hexdigest())
