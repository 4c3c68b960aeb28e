"""Corpora on a remote store (http(s)://, s3://, whatever fsspec opens): cached whole, or read by range.

With `data.cache_dir`, a shard is fetched whole into that folder under its SHA-256, checked, and shared by all
processes of the machine; the least recently used ones leave when `data.cache_bytes` is reached, and those of
the next era are fetched ahead. Without it, documents are read by range as they are needed
(`data.corpus.ranges`).

Whatever comes is checked after each arrival. A request that fails is tried again with growing pauses, and so
is one whose bytes are not the expected ones: only what comes wrong several times is called damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xxhash

from common.retry import attempts
from data.corpus.cache import ShardCache
from data.corpus.local import not_the_tokenizer
from data.corpus.manifest import DTYPES, MANIFEST, Manifest, ShardEntry, file_sha256, parse_manifest
from data.corpus.ranges import RemoteDocuments
from data.opening import store_options

if TYPE_CHECKING:
    from data.corpus.storage import ShardBytes

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.25  # doubled each time: half a minute in all
_REFUSED = (401, 403)  # HTTP: without, or with the wrong, credentials
ARRIVALS = 3  # how often a file is fetched before it is called damaged

T = TypeVar("T")


class RemoteStorage:
    """A corpus at a URL; see `data.corpus.storage.Storage`. Raises ValueError when there is no corpus."""

    def __init__(self, url: str, cache_dir: str, cache_bytes: int) -> None:
        self.path = url.rstrip("/")
        self._fs, self._root = _open_filesystem(self.path)
        self._cache = ShardCache(Path(cache_dir), cache_bytes) if cache_dir else None
        self._fetcher = threading.Thread()
        manifest = _read_manifest(self.path, self._fs, self._root)
        if manifest is None:
            raise ValueError(f"{url} is not a corpus: it has no {MANIFEST}; make one with `germinal prepare`")
        self._manifest = manifest
        self._indexes = lru_cache(maxsize=None)(self._fetch_index)
        width = DTYPES[manifest.dtype].itemsize
        self._documents = RemoteDocuments(self._fetch_range, self.index, width, self._name)

    def manifest(self) -> Manifest:
        """The manifest, as it was when the corpus was opened."""
        return self._manifest

    def tokenizer(self) -> bytes:
        """See `Storage`."""
        entry = self._manifest.tokenizer

        def fetch() -> bytes:
            raw = self._read(entry.file)
            if (found := hashlib.sha256(raw).hexdigest()) != entry.sha256:
                raise Mismatch(f"{self.path}/{not_the_tokenizer(entry.file, found, entry.sha256)}")
            return raw

        return _until_right(fetch)

    def index(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """See `Storage`; indexes are kept in memory."""
        return self._indexes(shard)[:, first:end]

    def open(self, shard: int) -> ShardBytes:
        """See `Storage`: the cached copy, mapped; or a window onto the remote file."""
        entry = self._manifest.shards[shard]
        if self._cache is None:
            return self._documents.open(shard)
        return self._cache.open(entry, self._fetch(entry))

    def check_lengths(self) -> None:
        """See `Storage`: the server is not asked; each answer's length is checked."""

    def download(self, file: str, target: Path) -> None:
        """A file of the corpus: the right one, if it comes within ARRIVALS, or else as it came last.
        FileNotFoundError when it is not there.
        """

        def fetch() -> None:
            _insist(f"{self.path}/{file}", lambda: self._fs.get_file(f"{self._root}/{file}", str(target)))
            hash_of, expected = self._hashes[file]
            if hash_of(target) != expected:
                raise Mismatch(file)

        with contextlib.suppress(Mismatch):
            _until_right(fetch)

    @cached_property
    def _hashes(self) -> dict[str, tuple[Callable[[Path], str], str]]:
        """File of the corpus → (what hashes it, the hash in the manifest)."""
        tokenizer = self._manifest.tokenizer
        found: dict[str, tuple[Callable[[Path], str], str]]
        found = {tokenizer.file: (file_sha256, tokenizer.sha256)}
        for entry in self._manifest.shards:
            found[entry.file] = file_sha256, entry.sha256
            found[entry.index_file] = _file_xxh3, entry.index_xxh3
        return found

    def prefetch(self, shards: Sequence[int]) -> None:
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
        name = f"shard {self.path}/{entry.file}"

        def fetch(target: Path) -> None:
            def once() -> None:
                self._fs.get_file(f"{self._root}/{entry.file}", str(target))
                if target.stat().st_size != entry.bytes:
                    raise OSError(f"{target.stat().st_size} of {entry.bytes} bytes came")

            _retry(name, once)
            if file_sha256(target) != entry.sha256:
                raise Mismatch(
                    f"{name} does not have the SHA-256 in {MANIFEST}: changed or damaged; restore it or run "
                    "`germinal prepare` again"
                )

        return lambda target: _until_right(lambda: fetch(target))

    def _fetch_index(self, shard: int) -> np.ndarray:
        entry = self._manifest.shards[shard]

        def fetch() -> bytes:
            raw = self._read(entry.index_file)
            if xxhash.xxh3_128(raw).hexdigest() != entry.index_xxh3:
                raise Mismatch(
                    f"index {self.path}/{entry.index_file} is not the one in {MANIFEST} (hash differs): "
                    "damaged or out of date; restore it or run `germinal prepare` again"
                )
            return raw

        return np.load(io.BytesIO(_until_right(fetch)), allow_pickle=False)

    def _fetch_range(self, shard: int, begin: int, end: int) -> bytes:
        def once() -> bytes:
            raw = self._fs.cat_file(f"{self._root}/{self._manifest.shards[shard].file}", start=begin, end=end)
            if len(raw) != end - begin:
                raise OSError(
                    f"{len(raw)} bytes came for bytes {begin} to {end}: no range requests, or cut short?"
                )
            return raw

        return _retry(f"shard {self._name(shard)}", once)

    def _name(self, shard: int) -> str:
        return f"{self.path}/{self._manifest.shards[shard].file}"

    def _read(self, file: str) -> bytes:
        return _retry(f"{self.path}/{file}", lambda: self._fs.cat_file(f"{self._root}/{file}"))


def _file_xxh3(path: Path) -> str:
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


def is_remote(path: str) -> bool:
    """Whether a corpus path is a URL."""
    return "://" in path


def remote_corpus(url: str) -> bool:
    """Whether there is a corpus at a URL. Raises as `RemoteStorage` does when it cannot be asked."""
    return _read_manifest(url, *_open_filesystem(url)) is not None


def _read_manifest(url: str, fs: Any, root: str) -> Manifest | None:
    """The manifest of the corpus at a URL, None where there is none. Not by `fs.exists`: to fsspec, what a
    web server that is down or overloaded has does not exist.
    """

    def fetch() -> Manifest:
        text = _insist(f"{url}/{MANIFEST}", lambda: fs.cat_file(f"{root}/{MANIFEST}"))
        try:
            return parse_manifest(text, f"{url}/{MANIFEST}")
        except RuntimeError as error:  # damaged, perhaps on its way only
            raise Mismatch(str(error)) from None

    try:
        return _until_right(fetch)
    except FileNotFoundError:
        return None


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, **store_options(url))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened: {error}; pip install 'germinal[http]' or [s3]") from None


def _retry(what: str, action: Callable[[], T]) -> T:
    """As `_insist`, and RuntimeError for a missing file too."""
    try:
        return _insist(what, action)
    except FileNotFoundError:
        raise RuntimeError(f"{what} is missing; restore it or run `germinal prepare` again") from None


def _insist(what: str, action: Callable[[], T]) -> T:
    """The result of `action`, tried ATTEMPTS times; then RuntimeError, one line. What does not pass
    by itself is final: FileNotFoundError for a missing file, RuntimeError where access is refused.
    """
    for attempt in attempts(ATTEMPTS, FIRST_PAUSE_SECONDS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has its own exceptions for a connection that broke
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if getattr(error, "status", 0) in _REFUSED or isinstance(error, PermissionError):
                raise RuntimeError(f"{what} may not be read: {reason}: check the URL and your key") from None
            if attempt == 1:
                print(f"{what}: tried twice, and again: {reason}", file=sys.stderr, flush=True)
    raise RuntimeError(f"{what} could not be read in {ATTEMPTS} attempts: {reason}")


class Mismatch(RuntimeError):
    """What came is not what was expected; it may come right when it is asked for again."""


def _until_right(fetch: Callable[[], T]) -> T:
    """The result of `fetch`, called ARRIVALS times as long as it raises `Mismatch`."""
    for _ in attempts(ARRIVALS, FIRST_PAUSE_SECONDS):
        try:
            return fetch()
        except Mismatch as error:
            last = error
    raise last
