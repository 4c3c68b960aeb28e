"""A corpus on a remote store, read through a cache of whole shards or by range.

With `data.cache_dir`, a shard is fetched whole into that folder (`cache`), and the shards of the next era are
fetched ahead. Without it, documents are fetched by range as they are read (`ranges`). Indexes are fetched
whole when they are needed, into `data.cache_dir` or a folder of this user's processes. Everything that
arrives is checked against the manifest or an index.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from data.corpus.index import array_in
from data.corpus.listing.catalogue import Listing, catalogue_name, look_up
from data.corpus.listing.tables import Table, Tables, parse
from data.corpus.local import not_the_tokenizer
from data.corpus.manifest import DTYPES, MANIFEST, Manifest, ShardEntry, file_sha256
from data.corpus.remote.cache import INDEX_BYTES, FileCache, Wanted, index_folder
from data.corpus.remote.fetching import WrongBytes, fetch, fetch_existing, fetch_right, open_filesystem
from data.corpus.remote.ranges import RemoteDocuments

if TYPE_CHECKING:
    from data.corpus.storage import ShardBytes


_PROBED_BYTES = 64


class RemoteStorage:
    """A corpus at a URL; see `data.corpus.storage.Storage`.

    url: where its manifest.json is.
    cache_dir: the folder of whole shards; "": documents are fetched by range.
    cache_bytes: the most that the folder may hold.
    spare: folders for tables that were made from the corpus, besides those of the caches.

    Raises ValueError where there is no corpus.
    """

    def __init__(self, url: str, cache_dir: str, cache_bytes: int, spare: Sequence[Path] = ()) -> None:
        self.path = url.rstrip("/")
        self._fs, self._root = open_filesystem(self.path)
        self._cache = FileCache(Path(cache_dir), cache_bytes) if cache_dir else None
        self._index_cache = self._cache
        if self._cache is None and (folder := index_folder()) is not None:
            self._index_cache = FileCache(folder, INDEX_BYTES)
        self._fetcher = threading.Thread()
        own = [self._index_cache.tables] if self._index_cache else []
        tables = Tables([*spare, *own], self._index_cache)
        listing = _read_listing(self.path, self._fs, self._root, tables, keeps=bool(own))
        if listing is None:
            raise ValueError(f"{url} is not a corpus: it has no {MANIFEST}; make one with `germinal prepare`")
        self.listing = listing
        self._manifest = manifest = listing.manifest
        width = DTYPES[manifest.dtype].itemsize
        self._documents = RemoteDocuments(self._fetch_range, self.index, width, self._name)

    def manifest(self) -> Manifest:
        """See `Storage`."""
        return self._manifest

    def tokenizer(self) -> bytes:
        """See `Storage`."""
        entry = self._manifest.tokenizer

        def read() -> bytes:
            raw = self._read(entry.file)
            if (found := hashlib.sha256(raw).hexdigest()) != entry.sha256:
                raise WrongBytes(f"{self.path}/{not_the_tokenizer(entry.file, found, entry.sha256)}")
            return raw

        return fetch_right(read)

    def index(self, shard: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """See `Storage`; nothing of it stays in memory."""
        entry, rows = self._manifest.shards[shard], self._manifest.index_rows
        wanted = Wanted.index(entry, rows)
        if self._index_cache is None or wanted.bytes > self._index_cache.limit_bytes:
            return array_in(memoryview(self._fetch_index(entry)))[:, first:end]
        while True:
            opened = self._index_cache.open(wanted, lambda path: _write(path, self._fetch_index(entry)))
            part = array_in(opened.view)[:, first:end].copy()
            if opened.version() == 0:  # else the copy was written to while it was read
                return part

    def open(self, shard: int) -> ShardBytes:
        """See `Storage`: the cached copy, mapped; or a view that fetches what is sliced from it."""
        entry = self._manifest.shards[shard]
        if self._cache is None:
            return self._documents.open(shard)
        return self._cache.open(Wanted.shard(entry), self._shard_to(entry))

    def check_lengths(self, rank: int = 0, ranks: int = 1) -> None:
        """See `Storage`: sends no request; the length of each answer is checked."""

    def download(self, file: str, target: Path) -> None:
        """Write a file of the corpus to `target`: as the manifest says if it arrives so within ARRIVALS, else
        as it arrived last. Raises FileNotFoundError where it is missing.
        """

        def download() -> None:
            fetch(f"{self.path}/{file}", lambda: self._fs.get_file(f"{self._root}/{file}", str(target)))
            hash_of, expected = self._hashes[file]
            if hash_of(target) != expected:
                raise WrongBytes(file)

        with contextlib.suppress(WrongBytes):
            fetch_right(download)

    @cached_property
    def _hashes(self) -> dict[str, tuple[Callable[[Path], str], str]]:
        """File of the corpus → (its hash function, its hash in the manifest)."""
        tokenizer = self._manifest.tokenizer
        found: dict[str, tuple[Callable[[Path], str], str]]
        found = {tokenizer.file: (file_sha256, tokenizer.sha256)}
        found[f"{catalogue_name(self.listing.digest)}.safetensors"] = _wholeness, ""
        for entry in self._manifest.shards:
            found[entry.file] = file_sha256, entry.sha256
            found[entry.index_file] = _file_xxh3, entry.index_xxh3
        return found

    def manifest_bytes(self) -> bytes:
        """The file `manifest.json`."""
        return self._read(MANIFEST)

    def prefetch(self, shards: Sequence[int]) -> None:
        """See `Storage`: in a thread, where there is a cache and half of it holds these shards."""
        entries = [self._manifest.shards[shard] for shard in shards]
        if self._cache is None or sum(entry.bytes for entry in entries) > self._cache.limit_bytes // 2:
            return
        if not self._fetcher.is_alive():
            arguments = (self._cache, entries)
            # A daemon: a run that ends does not wait for shards it will not read.
            self._fetcher = threading.Thread(target=self._fetch_all, args=arguments, daemon=True)
            self._fetcher.start()

    def _fetch_all(self, cache: FileCache, entries: Sequence[ShardEntry]) -> None:
        with contextlib.suppress(Exception):  # the run fails with the same error when it reads the shard
            for entry in entries:
                cache.open(Wanted.shard(entry), self._shard_to(entry))

    def _shard_to(self, entry: ShardEntry) -> Callable[[Path], None]:
        """A function that writes a shard, with the SHA-256 in the manifest, to a path."""
        name = f"shard {self.path}/{entry.file}"

        def download(target: Path) -> None:
            def once() -> None:
                self._fs.get_file(f"{self._root}/{entry.file}", str(target))
                if target.stat().st_size != entry.bytes:
                    raise OSError(f"{target.stat().st_size} of {entry.bytes} bytes came")

            fetch_existing(name, once)
            if file_sha256(target) != entry.sha256:
                raise WrongBytes(
                    f"{name} does not have the SHA-256 in {MANIFEST}: changed or damaged; restore it or run "
                    "`germinal prepare` again"
                )

        return lambda target: fetch_right(lambda: download(target))

    def _fetch_index(self, entry: ShardEntry) -> bytes:
        def read() -> bytes:
            raw = self._read(entry.index_file)
            if xxhash.xxh3_128(raw).hexdigest() != entry.index_xxh3:
                raise WrongBytes(
                    f"index {self.path}/{entry.index_file} is not the one in {MANIFEST} (hash differs): "
                    "damaged or out of date; restore it or run `germinal prepare` again"
                )
            return raw

        return fetch_right(read)

    def _fetch_range(self, shard: int, begin: int, end: int) -> bytes:
        def once() -> bytes:
            raw = self._fs.cat_file(f"{self._root}/{self._manifest.shards[shard].file}", start=begin, end=end)
            if len(raw) != end - begin:
                raise OSError(
                    f"{len(raw)} bytes came for bytes {begin} to {end}: no range requests, or cut short?"
                )
            return raw

        return fetch_existing(f"shard {self._name(shard)}", once)

    def _name(self, shard: int) -> str:
        return f"{self.path}/{self._manifest.shards[shard].file}"

    def _read(self, file: str) -> bytes:
        return fetch_existing(f"{self.path}/{file}", lambda: self._fs.cat_file(f"{self._root}/{file}"))


def _file_xxh3(path: Path) -> str:
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


def _wholeness(path: Path) -> str:
    """Empty where a file of tables is whole, which it says itself."""
    try:
        parse(memoryview(path.read_bytes()))
    except ValueError as error:
        return str(error)
    return ""


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def remote_corpus(url: str) -> bool:
    """Whether there is a corpus at a URL, by the first bytes of its manifest. Raises RuntimeError where the
    store does not answer.
    """
    fs, root = open_filesystem(url)
    try:
        fetch(f"{url}/{MANIFEST}", lambda: fs.cat_file(f"{root}/{MANIFEST}", start=0, end=_PROBED_BYTES))
    except FileNotFoundError:
        return False
    return True


def _read_listing(url: str, fs: Any, root: str, tables: Tables, *, keeps: bool) -> Listing | None:
    """What the catalogue or the manifest at a URL lists, None where there is no corpus.

    tables: where a catalogue may be at hand.
    keeps: keep one that is fetched in the last of these folders, for the other processes of the machine.

    Not by `fs.exists`: fsspec says that a file does not exist where the web server is down or overloaded.
    """

    def read() -> Listing:
        content = fetch(f"{url}/{MANIFEST}", lambda: fs.cat_file(f"{root}/{MANIFEST}"))
        try:
            return look_up(content, f"{url}/{MANIFEST}", tables, fetch_catalogue)
        except RuntimeError as error:  # damaged, maybe only on its way here
            raise WrongBytes(str(error)) from None

    def fetch_catalogue(name: str) -> Table | None:
        file = f"{name}.safetensors"

        def once() -> Table:
            content = fetch(f"{url}/{file}", lambda: fs.cat_file(f"{root}/{file}"))
            try:
                found = parse(memoryview(content))
            except ValueError as error:
                raise WrongBytes(str(error)) from None
            if keeps:
                tables.write_bytes(name, content, last=True)
            return found

        try:
            return fetch_right(once)
        except WrongBytes as error:
            tables.note_damage(f"{url}/{file}", error)
        except (FileNotFoundError, RuntimeError):  # a store may refuse what is not there
            pass
        return None

    try:
        return fetch_right(read)
    except FileNotFoundError:
        return None
