"""A folder with copies of remote shards, bounded in size, shared by all processes of a machine.

DIR/SHA256        a shard, under its hash
DIR/SHA256.part   a shard that is being fetched
DIR/SHA256.lock   held while a process fetches or maps the shard; its time says when it was last used
DIR/evict.lock    held while shards are evicted or come into place
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from common.lock import locked
from common.mapped_file import MappedFile
from data.corpus.manifest import ShardEntry


class ShardCache:
    """The folder `folder`, which holds at most `limit_bytes` of shards. Raises ValueError where it cannot be
    made.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._evicting = folder / "evict.lock"
        self._checked: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache_dir={folder} cannot be made: {error.strerror}") from None

    def open(self, entry: ShardEntry, fetch: Callable[[Path], None]) -> MappedFile:
        """A shard, mapped; `fetch` writes it to a path where the folder does not have it.

        The first process that needs a shard fetches it, the others wait for that. A shard that is evicted
        while it is mapped stays readable: its room is freed when the last mapping goes.

        Raises ValueError where the shard is larger than the folder may become.
        """
        if entry.bytes > self.limit_bytes:
            raise ValueError(
                f"data.cache_bytes={self.limit_bytes} holds no shard of {entry.bytes} bytes; give it more, "
                "or no data.cache_dir"
            )
        lock = self.folder / f"{entry.sha256}.lock"
        with locked(lock):
            # When the shard was last used. The shard's own time will not do: readers watch it for changes.
            os.utime(lock)
            opened = self._cached(entry)
            if opened is None:
                part = self.folder / f"{entry.sha256}.part"
                try:
                    self._make_room(entry.bytes)
                    fetch(part)
                    with locked(self._evicting):  # or it might be evicted before it is mapped
                        os.replace(part, self.folder / entry.sha256)
                        opened = MappedFile(self.folder / entry.sha256)
                finally:
                    part.unlink(missing_ok=True)
                self._checked.add(entry.sha256)
            return opened

    def _cached(self, entry: ShardEntry) -> MappedFile | None:
        """The cached copy, hashed when this process first opens it; None where it is missing or damaged."""
        path = self.folder / entry.sha256
        try:
            found = MappedFile(path)
        except FileNotFoundError:
            return None
        if entry.sha256 not in self._checked:
            if hashlib.sha256(found.view).hexdigest() != entry.sha256:
                return None
            self._checked.add(entry.sha256)
        return found if len(found.view) == entry.bytes else None

    def _make_room(self, size: int) -> None:
        """Evict the least recently used shards until one of `size` bytes fits."""
        with locked(self._evicting):
            files = [path for path in self.folder.iterdir() if path.suffix != ".lock"]
            found = {path: path.stat() for path in files if path.is_file()}
            total = sum(stat.st_size for stat in found.values())
            for path in sorted(found, key=self._used):
                if total + size <= self.limit_bytes:
                    return
                if not path.suffix:
                    total -= found[path].st_size
                    path.unlink(missing_ok=True)

    def _used(self, path: Path) -> int:
        """When a file of the folder was last used, in nanoseconds."""
        lock = path.with_suffix(".lock")
        return lock.stat().st_mtime_ns if lock.exists() else 0
