"""Corpora on a remote store (http(s)://, s3://, whatever fsspec opens): cached whole, or read by range.

With `data.cache_dir`, a shard is fetched whole into that folder under its SHA-256, checked, and shared by all
processes of the machine; the least recently used ones leave when `data.cache_bytes` is reached, and those of
the next era are fetched ahead. Without it, ranges are read as they are needed. Either way each document is
checked when it is first read, and what fails is tried again with growing pauses.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from data.manifest import MANIFEST, Manifest, ShardEntry, file_sha256, parse_manifest
from data.scan import map_file

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.25  # doubled each time: half a minute in all
RANGE_BYTES = 1 << 18
RANGES_KEPT = 16

T = TypeVar("T")


class RemoteStorage:
    """A corpus at a URL; see `data.corpus.Storage`. Raises ValueError when there is no corpus."""

    def __init__(self, url: str, cache_dir: str, cache_bytes: int) -> None:
        self.path = url.rstrip("/")
        self._fs, self._root = _open_filesystem(self.path)
        self._cache = ShardCache(Path(cache_dir), cache_bytes) if cache_dir else None
        self._fetcher = threading.Thread()
        text = _read_manifest(self.path, self._fs, self._root)
        if text is None:
            raise ValueError(f"{url} is not a corpus: it has no {MANIFEST}; make one with `germinal prepare`")
        self._manifest = parse_manifest(text, f"{self.path}/{MANIFEST}")
        self._indexes = lru_cache(maxsize=None)(self._fetch_index)

    def manifest(self) -> Manifest:
        """The manifest, as it was when the corpus was opened."""
        return self._manifest

    def read(self, file: str) -> bytes:
        """A small file of the corpus, whole."""
        return _retry(f"{self.path}/{file}", lambda: self._fs.cat_file(f"{self._root}/{file}"))

    def index(self, shard: int) -> np.ndarray:
        """The index of a shard; kept in memory."""
        return self._indexes(shard)

    def view(self, shard: int) -> Any:
        """The shard's bytes: its cached copy, mapped; or a window onto the remote file."""
        entry = self._manifest.shards[shard]
        if self._cache is None:
            return RangeView(self._fs, f"{self._root}/{entry.file}", f"{self.path}/{entry.file}", entry.bytes)
        return self._cache.open(entry, self._fetch(entry))

    def download(self, file: str, target: Path) -> None:
        """A file of the corpus, as it is; FileNotFoundError when it is not there."""
        _insist(f"{self.path}/{file}", lambda: self._fs.get_file(f"{self._root}/{file}", str(target)))

    def ahead(self, shards: Sequence[int]) -> None:
        """Fetches shards in the background, if there is a cache and half of it holds them."""
        entries = [self._manifest.shards[shard] for shard in shards]
        if self._cache is None or sum(entry.bytes for entry in entries) > self._cache.limit_bytes // 2:
            return
        if not self._fetcher.is_alive():
            arguments = (self._cache, entries)
            # A daemon: a run that ends does not wait for shards it will not read.
            self._fetcher = threading.Thread(target=self._fetch_all, args=arguments, daemon=True)
            self._fetcher.start()

    def _fetch_all(self, cache: ShardCache, entries: Sequence[ShardEntry]) -> None:
        with contextlib.suppress(Exception):  # it will show again, and in place, when the shard is needed
            for entry in entries:
                cache.open(entry, self._fetch(entry))

    def _fetch(self, entry: ShardEntry) -> Callable[[Path], None]:
        def fetch(target: Path) -> None:
            def once() -> None:
                self._fs.get_file(f"{self._root}/{entry.file}", str(target))
                if target.stat().st_size != entry.bytes:
                    raise OSError(f"{target.stat().st_size} of {entry.bytes} bytes came")

            _retry(f"shard {self.path}/{entry.file}", once)
            if file_sha256(target) != entry.sha256:
                raise RuntimeError(
                    f"shard {self.path}/{entry.file} does not have the SHA-256 in {MANIFEST}: changed or "
                    "damaged; restore it or run `germinal prepare` again"
                )

        return fetch

    def _fetch_index(self, shard: int) -> np.ndarray:
        entry = self._manifest.shards[shard]
        raw = self.read(entry.index_file)
        if xxhash.xxh3_128(raw).hexdigest() != entry.index_xxh3:
            raise RuntimeError(
                f"index {self.path}/{entry.index_file} is not the one in {MANIFEST} (hash differs): damaged "
                "or out of date; restore it or run `germinal prepare` again"
            )
        return np.load(io.BytesIO(raw), allow_pickle=False)


class RangeView:
    """A remote file that is sliced like bytes: a slice reads the ranges it touches; the last few are kept."""

    def __init__(self, fs: Any, path: str, name: str, size: int) -> None:
        self._fs, self._path, self._name, self._size = fs, path, name, size
        self._range = lru_cache(maxsize=RANGES_KEPT)(self._read)

    def __getitem__(self, span: slice) -> memoryview:
        begin, end, _ = span.indices(self._size)
        first, last = begin // RANGE_BYTES, max(begin, end - 1) // RANGE_BYTES
        raw = b"".join(self._range(i) for i in range(first, last + 1))
        return memoryview(raw)[begin - first * RANGE_BYTES : end - first * RANGE_BYTES]

    def _read(self, number: int) -> bytes:
        begin, end = number * RANGE_BYTES, min((number + 1) * RANGE_BYTES, self._size)

        def once() -> bytes:
            raw = self._fs.cat_file(self._path, start=begin, end=end)
            if len(raw) != end - begin:
                raise OSError(
                    f"{len(raw)} bytes came for bytes {begin} to {end}: no range requests, or cut short?"
                )
            return raw

        return _retry(f"shard {self._name}", once)


class ShardCache:
    """A folder of shards under their hashes, at most `limit_bytes`, shared by processes by file locks."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._checked: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache_dir={folder} cannot be made: {error.strerror}") from None

    def open(self, entry: ShardEntry, fetch: Callable[[Path], None]) -> memoryview:
        """The bytes of a shard, mapped; `fetch` writes it to a path when it is not there.

        Whichever process comes first fetches, the others wait for it. A shard that is evicted while it is
        mapped stays readable: its room is freed when the last mapping goes.
        """
        if entry.bytes > self.limit_bytes:
            raise ValueError(
                f"data.cache_bytes={self.limit_bytes} holds no shard of {entry.bytes} bytes; give it more, "
                "or no data.cache_dir"
            )
        with self._lock(f"{entry.sha256}.lock"):
            view = self._cached(entry)
            if view is None:
                part = self.folder / f"{entry.sha256}.part"
                try:
                    self._make_room(entry.bytes)
                    fetch(part)
                    view = map_file(part)  # before it can be evicted
                    os.replace(part, self.folder / entry.sha256)
                finally:
                    part.unlink(missing_ok=True)
                self._checked.add(entry.sha256)
            return view

    def _cached(self, entry: ShardEntry) -> memoryview | None:
        """The cached copy, hashed when this process first meets it; None if it is missing or damaged."""
        path = self.folder / entry.sha256
        try:
            os.utime(path)
            view = map_file(path)
        except FileNotFoundError:
            return None
        if entry.sha256 not in self._checked:
            if hashlib.sha256(view).hexdigest() != entry.sha256:
                return None
            self._checked.add(entry.sha256)
        return view if len(view) == entry.bytes else None

    def _make_room(self, size: int) -> None:
        """Evicts the least recently used shards until one of `size` bytes fits."""
        with self._lock("evict.lock"):
            files = [path for path in self.folder.iterdir() if path.suffix != ".lock"]
            found = {path: path.stat() for path in files if path.is_file()}
            total = sum(stat.st_size for stat in found.values())
            for path in sorted(found, key=lambda path: found[path].st_mtime_ns):
                if total + size <= self.limit_bytes:
                    return
                if not path.suffix:
                    total -= found[path].st_size
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        # flock: released by the system when its holder dies, so a killed rank leaves nobody waiting.
        with open(self.folder / name, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def is_remote(path: str) -> bool:
    """Whether a corpus path is a URL."""
    return "://" in path


def remote_corpus(url: str) -> bool:
    """Whether there is a corpus at a URL. Raises as `RemoteStorage` does when it cannot be asked."""
    return _read_manifest(url, *_open_filesystem(url)) is not None


def _read_manifest(url: str, fs: Any, root: str) -> bytes | None:
    """The manifest, None where there is none. Not by `fs.exists`: to fsspec, what a web server that is down
    or overloaded has does not exist.
    """
    try:
        return _insist(f"{url}/{MANIFEST}", lambda: fs.cat_file(f"{root}/{MANIFEST}"))
    except FileNotFoundError:
        return None


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened: {error}; pip install 'germinal[http]' or [s3]") from None


def _retry(what: str, action: Callable[[], T]) -> T:
    """As `_insist`, and RuntimeError for a missing file too."""
    try:
        return _insist(what, action)
    except FileNotFoundError:
        raise RuntimeError(f"{what} is missing; restore it or run `germinal prepare` again") from None


def _insist(what: str, action: Callable[[], T]) -> T:
    """The result of `action`, tried ATTEMPTS times; then RuntimeError, one line. A missing file is final:
    FileNotFoundError.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has its own exceptions for a connection that broke
            reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise RuntimeError(f"{what} could not be read in {ATTEMPTS} attempts: {reason}")
