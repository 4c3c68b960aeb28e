"""A folder with copies of remote shards and indexes, bounded in size, shared by all processes of a machine.

DIR/HASH        a shard, under its SHA-256
DIR/HASH.idx    an index, under its xxh3_128
DIR/HASH.part   a file that is being fetched
DIR/HASH.lock   held while a process fetches or maps the file; its time says when it was last used
DIR/evict.lock  held while files are evicted or come into place
DIR/tables/     tables that were made from corpora (`data.corpus.listing.tables`); a file's time says when
                it was last used
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from common.lock import locked
from common.mapped_file import MappedFile
from data.corpus.manifest import ShardEntry

SHARD, INDEX = "", ".idx"  # suffixes of copies
INDEX_BYTES = 1 << 29  # the most that the indexes of a machine take where there is no data.cache_dir


@dataclass(frozen=True)
class Wanted:
    """A file of a corpus.

    digest: its hash, in hex.
    suffix: of its copy: what it is.
    bytes: about its length.
    """

    digest: str
    suffix: str
    bytes: int

    @classmethod
    def shard(cls, entry: ShardEntry) -> Wanted:
        """A shard."""
        return cls(entry.sha256, SHARD, entry.bytes)

    @classmethod
    def index(cls, entry: ShardEntry, rows: int) -> Wanted:
        """The index of a shard; `rows`: of each index."""
        return cls(entry.index_xxh3, INDEX, (1 << 7) + 8 * rows * entry.documents)

    def is_right(self, content: memoryview) -> bool:
        """Whether bytes have the hash."""
        hasher = hashlib.sha256(content) if self.suffix == SHARD else xxhash.xxh3_128(content)
        return hasher.hexdigest() == self.digest


def index_folder() -> Path | None:
    """The folder where the processes of this user share indexes where there is no data.cache_dir; None where
    it cannot be had, or belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"germinal-indexes-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


class FileCache:
    """The folder `folder`, which holds at most `limit_bytes` of files, tables included. Raises ValueError
    where it cannot be made.

    tables: the folder of tables in it; see `data.corpus.listing.tables.Bounded`.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.tables = folder / "tables"
        self._evicting = folder / "evict.lock"
        self._checked: dict[str, int] = {}  # hash of a file → hash of its stamp when its bytes had it
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache_dir={folder} cannot be made: {error.strerror}") from None

    def open(self, wanted: Wanted, fetch: Callable[[Path], None]) -> MappedFile:
        """A file, mapped; `fetch` writes it to a path where the folder does not have it.

        The first process that needs a file fetches it, the others wait for that. A file that is evicted
        while it is mapped stays readable: its room is freed when the last mapping goes.

        Raises ValueError where the file is larger than the folder may become.
        """
        if wanted.bytes > self.limit_bytes:
            raise ValueError(
                f"data.cache_bytes={self.limit_bytes} holds no shard of {wanted.bytes} bytes; give it more, "
                "or no data.cache_dir"
            )
        lock = self.folder / f"{wanted.digest}.lock"
        with locked(lock):
            # When the file was last used. The file's own time will not do: readers watch it for changes.
            os.utime(lock)
            path = self.folder / f"{wanted.digest}{wanted.suffix}"
            opened = self._cached(path, wanted)
            if opened is None:
                part = self.folder / f"{wanted.digest}.part"
                try:
                    self._make_room(wanted.bytes)
                    fetch(part)
                    with locked(self._evicting):  # or it might be evicted before it is mapped
                        os.replace(part, path)
                        opened = MappedFile(path)
                finally:
                    part.unlink(missing_ok=True)
                self._checked[wanted.digest] = hash(opened.stamp)
            return opened

    def _cached(self, path: Path, wanted: Wanted) -> MappedFile | None:
        """The cached copy, hashed when this process first opens it, and again where it was written to since;
        None where it is missing or damaged.
        """
        try:
            found = MappedFile(path)
        except FileNotFoundError:
            return None
        if self._checked.get(wanted.digest) != hash(found.stamp):
            if not wanted.is_right(found.view):
                return None
            self._checked[wanted.digest] = hash(found.stamp)
        return found

    def note_use(self, path: Path) -> None:
        """See `Bounded`."""
        if path.parent == self.tables:
            with contextlib.suppress(OSError):
                os.utime(path)

    def make_room(self, path: Path, size: int) -> None:
        """See `Bounded`."""
        if path.parent == self.tables:
            if size > self.limit_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
            self._make_room(size)

    def _make_room(self, size: int) -> None:
        """Evict the least recently used files until one of `size` bytes fits."""
        with locked(self._evicting):
            found = {}
            for path in (*self.folder.iterdir(), *self.tables.glob("*")):
                with contextlib.suppress(FileNotFoundError):  # another process has renamed or removed it
                    if path.suffix != ".lock" and stat.S_ISREG((status := path.stat()).st_mode):
                        found[path] = status
            total = sum(status.st_size for status in found.values())
            for path in sorted(found, key=lambda path: self._used(path, found[path])):
                if total + size <= self.limit_bytes:
                    return
                if path.parent == self.tables or path.suffix in (SHARD, INDEX):
                    total -= found[path].st_size
                    path.unlink(missing_ok=True)

    def _used(self, path: Path, status: os.stat_result) -> int:
        """When a file was last used, in nanoseconds."""
        if path.parent == self.tables:
            return status.st_mtime_ns
        lock = path.with_suffix(".lock")
        return lock.stat().st_mtime_ns if lock.exists() else 0
