"""A folder of remote shards' copies, bounded, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from common.lock import locked
from common.mapped_file import MappedFile
from data.corpus.manifest import ShardEntry


class ShardCache:
    """A folder of shards under their hashes, at most `limit_bytes`, shared by processes by file locks."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._evicting = folder / "evict.lock"
        self._checked: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache_dir={folder} cannot be made: {error.strerror}") from None

    def open(self, entry: ShardEntry, fetch: Callable[[Path], None]) -> MappedFile:
        """A shard, mapped; `fetch` writes it to a path when it is not there.

        Whichever process comes first fetches, the others wait for it. A shard that is evicted while it is
        mapped stays readable: its room is freed when the last mapping goes.
        """
        if entry.bytes > self.limit_bytes:
            raise ValueError(
                f"data.cache_bytes={self.limit_bytes} holds no shard of {entry.bytes} bytes; give it more, "
                "or no data.cache_dir"
            )
        lock = self.folder / f"{entry.sha256}.lock"
        with locked(lock):
            # When the shard was last used. Not by its own time stamp: its readers watch that for changes.
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
        """The cached copy, hashed when this process first meets it; None if it is missing or damaged."""
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
        """Evicts the least recently used shards until one of `size` bytes fits."""
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
