"""Writing token shards: WebDataset tars whose bytes depend on the documents alone, and their indexes.

A header of ustar (POSIX.1-1988) is 512 bytes; the members of a shard differ only in the fields name [0, 100),
size [124, 136) and checksum [148, 156).
"""

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

from data.corpus.columns import (
    CLASS,
    CLASS_NUMBER,
    COLUMNS,
    FIRST_TEXT,
    LABEL,
    MARKED,
    MEDIA,
    NO_LABEL,
    NO_MARKS,
    ONE_TEXT,
    PICTURES,
    Columns,
)
from data.corpus.index import write_index
from data.corpus.manifest import ShardEntry
from data.corpus.tar import TAR_BLOCK

_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)


@functools.lru_cache(1 << 16)
def _npy_header(dtype: np.dtype, count: int) -> bytes:
    """The header of a .npy file of `count` ids. Cached: NumPy takes as long to make a header as to write the
    ids, and lengths recur.
    """
    buffer = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


@functools.cache
def _webdataset() -> Any:
    """The webdataset package. Imported late: it imports torch, which takes a second and makes many objects
    that stay. They are frozen, or the garbage collector would walk them again and again while documents are
    collected.
    """
    import webdataset

    gc.collect()
    gc.freeze()
    return webdataset


class _Hashed:
    """A file that is hashed while it is written, which saves reading it again. `size`: bytes so far."""

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
    """Writes the members of a `TarWriter`: the bytes that `tarfile` writes, five times as fast.

    Each header is the first one with name, size and checksum set anew. `tarfile` makes every field of every
    header from nothing, and keeps all headers in memory.
    """

    _template: bytes = b""
    _sum = 0

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        """Append a member. `fileobj`: a BytesIO of its `size` bytes."""
        assert isinstance(fileobj, io.BytesIO) and isinstance(self.fileobj, _Hashed)
        name, size = tarinfo.name.encode(), tarinfo.size
        if not self._template:
            blank = copy.copy(tarinfo)
            blank.name, blank.size = "", 0
            header = bytearray(blank.tobuf(tarfile.USTAR_FORMAT))
            header[_SIZE], header[_CHECKSUM] = bytes(12), b" " * 8
            self._template, self._sum = bytes(header), sum(header)
        if len(name) > 100 or size >> 33:  # does not fit into one plain header
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
            bytes(-size % TAR_BLOCK),
        )
        self.offset += self.fileobj.write(b"".join(parts))
        return None


class TokenShardWriter:
    """Writes one shard: KEY.npy (ids) and KEY.json (origin) of each document, through `webdataset.TarWriter`
    with a fixed time and owner.

    Until `close` there is only the file PATH.tmp.

    path: the finished shard.
    dtype: type of the ids, an unsigned integer.

    Attributes: `class_numbers`, the classes of the documents so far, in the order of their first appearance →
    the number that the source gives to each, −1 where it gives none.
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
        # Replaces the TarFile that it opened, which takes 15 % of the time that tokenising takes.
        self._tar.tarstream = _Tar(None, "w", self._hashed, tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        self._rows: list[tuple[int, int, int, int]] = []
        self._pictures: list[tuple[int, int, int]] = []
        self._labels: list[int] = []
        self._first_texts: list[int] = []
        self._marked: list[int] = []
        self._media: set[str] = set()
        self.class_numbers: dict[str, int] = {}
        self._places: dict[str, int] = {}

    def add(
        self, key: str, ids: NDArray, text_bytes: int, origin: dict[str, Any], media: dict[str, bytes]
    ) -> None:
        """Append a document.

        key: the sample's key, unique in the corpus, without a dot.
        ids: the document's token ids [tokens].
        text_bytes: UTF-8 bytes of the text that the ids came from.
        origin: JSON fields that say where the document is from; `class` is the document's label, and
            `class_number` the number that the source gives to this class. For a document of two texts,
            `first_text` is the number of ids of the first one, which come first. Where each id has a mark,
            `marked` is their number: half of `ids`, whose other half are the marks.
        media: extension → bytes of further members, such as a picture; one picture at most.
        """
        ids = np.ascontiguousarray(ids, dtype=self.dtype)
        npy = _npy_header(self.dtype, ids.size) + ids.tobytes()
        about = json.dumps({**origin, "text_bytes": text_bytes}, ensure_ascii=False).encode()
        members = {"json": about, "npy": npy, **media}
        # TarWriter sorts the extensions, which says where each member will be.
        at, places = self._tar.tarstream.offset, {}
        for extension in sorted(members):
            places[extension] = at + TAR_BLOCK
            at += TAR_BLOCK + len(members[extension]) + -len(members[extension]) % TAR_BLOCK
        self._tar.write({"__key__": key, **members})
        offset = places["npy"] + len(npy) - ids.nbytes
        self._rows.append((offset, ids.size, zlib.crc32(ids.data), text_bytes))
        pictures = [extension for extension in media if extension in PICTURES]
        assert len(pictures) <= 1, (key, pictures)
        self._media.update(pictures)
        found = [(places[name], len(media[name]), zlib.crc32(media[name])) for name in pictures]
        self._pictures += found or [(0, 0, 0)]
        self._labels.append(self._label(origin))
        self._first_texts.append(origin.get(FIRST_TEXT, ONE_TEXT))
        self._marked.append(origin.get(MARKED, NO_MARKS))

    def _label(self, origin: dict[str, Any]) -> int:
        """The label of a document by its origin: a place in the shard's classes."""
        name = origin.get(CLASS)
        if name is None:
            return NO_LABEL
        number = origin.get(CLASS_NUMBER, -1)
        if self.class_numbers.setdefault(name, number) != number:
            self.class_numbers[name] = -1  # its documents do not agree on a number
        return self._places.setdefault(name, len(self._places))

    @property
    def columns(self) -> Columns:
        """The columns of the index beyond the first four: those that some document has a value of."""
        has = {
            **dict.fromkeys(MEDIA, bool(self._media)),
            LABEL: bool(self.class_numbers),
            FIRST_TEXT: any(ids != ONE_TEXT for ids in self._first_texts),
            MARKED: any(ids != NO_MARKS for ids in self._marked),
        }
        names = tuple(name for name in COLUMNS if has[name])
        media = tuple(name for name in PICTURES if name in self._media)
        return Columns(names, tuple(self.class_numbers), media)

    def close(self) -> ShardEntry:
        """Make the shard durable, rename it into place, write its index; return its manifest entry."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        index = np.array(self._rows, dtype=np.uint64).reshape(-1, 4).T
        pictures = np.array(self._pictures, dtype=np.uint64).reshape(-1, len(MEDIA)).T
        rows = dict(zip(MEDIA, pictures)) | {
            LABEL: np.array(self._labels, dtype=np.uint64),
            FIRST_TEXT: np.array(self._first_texts, dtype=np.uint64),
            MARKED: np.array(self._marked, dtype=np.uint64),
        }
        further = [rows[name][None] for name in self.columns.names]
        index = np.ascontiguousarray(np.concatenate((index, *further)))
        return write_index(self.path, index, self._hashed.digest.hexdigest())
