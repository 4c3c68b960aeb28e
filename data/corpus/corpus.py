"""A corpus that is open for reading: its manifest, its blocks of documents, the bytes of its shards.

open_corpus(path, cfg)       a corpus at a path or URL, checked as far as can be done quickly
open_storage(path)           only its files: for readers of the manifest alone
corpora_in(folder)           which corpora are at a folder or URL
check_alike(key, corpora)    do ids and labels of corpora mean the same?
check_tokenizers(key, a, b)  do the ids of two corpora mean the same?
check_classes(key, a, b)     do their labels?

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.corpus.listing.blocks import block_places, text_ids
from data.corpus.listing.catalogue import documents_of_shards
from data.corpus.local import LocalStorage
from data.corpus.manifest import DTYPES, MANIFEST, TEXT_BYTES, read_manifest
from data.corpus.remote.fetching import is_remote
from data.corpus.remote.remote_storage import RemoteStorage, remote_corpus
from data.corpus.storage import Storage
from data.corpus.tar import TAR_BLOCK


@dataclass(frozen=True)
class DamagedDocument:
    """A document whose ids do not have the checksum in the index.

    shard: path or URL of its shard.
    sample: its key in the shard.
    offset: the first byte of its ids in the shard.
    """

    shard: str
    sample: str
    offset: int

    def __str__(self) -> str:
        return (
            f"shard {self.shard}: sample {self.sample!r}, byte {self.offset}: its ids do not have the "
            "checksum in the index: damaged or changed; see `germinal data verify`, restore it, or set "
            "data.on_corrupt=quarantine"
        )


@dataclass(frozen=True)
class DamagedPicture(DamagedDocument):
    """A document whose picture cannot be shown.

    offset: the first byte of the picture in the shard.
    problem: why not.
    """

    problem: str

    def __str__(self) -> str:
        return (
            f"shard {self.shard}: sample {self.sample!r}, byte {self.offset}: its picture cannot be shown: "
            f"{self.problem}; see `germinal data verify`, restore it, or set data.on_corrupt=quarantine"
        )


class Corpus:
    """A corpus and its table of blocks.

    storage: its files.
    manifest: what the corpus folder says of itself.
    dtype, eos: type of the ids in the shards, and the id of the separator.
    shard_documents: documents of each shard, int64 [shards].
    block_shard, block_first, block_documents: of each block the shard, the first document in that shard and
        the number of documents, int64 [blocks].

    Raises ValueError where no document has a token or a picture, RuntimeError where the manifest is damaged.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.manifest = manifest = storage.manifest()
        if manifest.tokens == 0 and not manifest.media:
            raise ValueError(
                f"corpus {storage.path} is empty: no document has a token or a picture; prepare it from "
                "other sources"
            )
        self.dtype = DTYPES[manifest.dtype]
        self.eos = manifest.tokenizer.eos
        self.shard_documents = documents_of_shards(manifest)
        places = block_places(self.shard_documents, manifest.block_documents)
        self.block_shard, self.block_first, self.block_documents = places

    def first_documents(self, limit: int | None = None) -> np.ndarray:
        """The index of the first `limit` documents, uint64 [rows, documents]; None: of all. Reads the indexes
        that hold them.
        """
        return np.concatenate(list(self._indexes(limit)), axis=1)[:, :limit]

    def _indexes(self, limit: int | None) -> Iterator[np.ndarray]:
        before = np.cumsum(self.shard_documents) - self.shard_documents
        shards = np.flatnonzero(before < limit) if limit is not None else np.arange(len(before))
        return (self.storage.index(shard) for shard in shards.tolist())

    def lengths(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids, UTF-8 bytes of text) of the first `limit` documents, int64 [documents]."""
        # Of one index after another: all columns of 10⁹ documents are 32 GB.
        parts = [
            (text_ids(self.manifest, index), index[TEXT_BYTES].astype(np.int64))
            for index in self._indexes(limit)
        ]
        ids, text_bytes = (np.concatenate(column)[:limit] for column in zip(*parts))
        return ids, text_bytes

    def shard_path(self, shard: int) -> str:
        """Path or URL of a shard, for messages."""
        return f"{self.storage.path}/{self.manifest.shards[shard].file}"

    def damaged_document(self, shard: int, offset: int) -> DamagedDocument:
        """The report on the damaged document whose ids start at byte `offset` of a shard."""
        return DamagedDocument(self.shard_path(shard), self.sample_key(shard, offset), offset)

    def damaged_picture(self, shard: int, offset: int, picture: int, reason: str) -> DamagedPicture:
        """The report on the picture at byte `picture` of a shard; its document has its ids at `offset`."""
        return DamagedPicture(self.shard_path(shard), self.sample_key(shard, offset), picture, reason)

    def sample_key(self, shard: int, offset: int) -> str:
        """The key of the sample whose ids start at byte `offset`, from the tar header before them."""
        view = self.storage.open(shard).view
        # A .npy header is shorter than a tar block, so the member's data starts at the block before the ids.
        header = (offset - 1) // TAR_BLOCK * TAR_BLOCK - TAR_BLOCK
        name = bytes(view[header : header + 100]).split(b"\0", 1)[0]
        return name.decode("utf-8", "replace").partition(".npy")[0]


def open_storage(
    path: str, cache_dir: str = "", cache_bytes: int = 0, spare: Sequence[Path] = (), *, tell: bool = True
) -> Storage:
    """The files of the corpus at a path or URL. Raises ValueError where there is none.

    cache_dir, cache_bytes: where a remote one is cached.
    spare: folders for tables that cannot be kept beside the corpus.
    tell: say on standard error where its catalogue is damaged. Of several ranks one does.
    """
    remote = is_remote(path)
    storage = RemoteStorage(path, cache_dir, cache_bytes, spare) if remote else LocalStorage(path, spare)
    if tell:
        storage.listing.tables.tell()
    return storage


def open_corpus(
    path: str,
    cfg: DataConfig,
    spare: Sequence[Path] = (),
    *,
    rank: int = 0,
    ranks: int = 1,
    tell: bool = True,
) -> Corpus:
    """The corpus at a path or URL; `cfg` says where a remote one is cached.

    spare: folders for tables that cannot be kept beside the corpus.
    rank, ranks: this process among those that open the same corpus: they share the looks at its shards.
    tell: see `open_storage`.

    Raises ValueError where there is none or it is empty, RuntimeError where its manifest or the length of a
    local shard is damaged.
    """
    corpus = Corpus(open_storage(path, cfg.cache_dir, cfg.cache_bytes, spare, tell=tell))
    corpus.storage.check_lengths(rank, ranks)
    return corpus


def corpora_in(folder: str | Path) -> list[str]:
    """The corpus at `folder` or URL, or the corpora right below (train, heldout).

    Raises ValueError where there is none.
    """
    if is_remote(str(folder)):
        return _corpora_at(str(folder).rstrip("/"))
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return [str(folder)]
    found = sorted(str(path.parent) for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    if not found:
        read_manifest(folder)  # raises the error that names what is missing
    return found


def _corpora_at(url: str) -> list[str]:
    places = [url, f"{url}/heldout", f"{url}/train"]
    found = [place for place in places if remote_corpus(place)]
    if not found:
        raise ValueError(f"{url} is not a corpus: it has no {MANIFEST}; make one with `germinal prepare`")
    return found[:1] if found[0] == url else found


def check_alike(key: str, corpora: Sequence[Corpus]) -> None:
    """Raise ValueError, naming the config's `key`, where ids or labels of some corpora do not mean the
    same.
    """
    for a, b in pairwise(corpora):
        check_tokenizers(key, a, b)
    # Not of neighbours alone: between two with classes there may be one without.
    for a, b in pairwise(corpus for corpus in corpora if corpus.manifest.classes):
        check_classes(key, a, b)


def check_tokenizers(key: str, a: Corpus, b: Corpus) -> None:
    """Raise ValueError, naming the config's `key`, where the ids of two corpora do not mean the same."""
    if a.manifest.ids != b.manifest.ids:
        first, second = (
            f"{sha256[:12]}, separator {eos}" for sha256, eos, _ in (a.manifest.ids, b.manifest.ids)
        )
        raise ValueError(
            f"{key}: {a.storage.path} and {b.storage.path} were prepared with different tokenizers "
            f"({first}; {second}); prepare one again with the other's --tokenizer"
        )


def check_classes(key: str, a: Corpus, b: Corpus) -> None:
    """Raise ValueError, naming the config's `key`, where the labels of two corpora do not mean the same."""
    first, second = a.manifest.classes, b.manifest.classes
    if first and second and first != second:
        differ = next((pair for pair in zip(first, second) if pair[0] != pair[1]), None)
        where = f"{differ[0]!r} and {differ[1]!r}" if differ else f"{len(first)} and {len(second)} of them"
        raise ValueError(
            f"{key}: {a.storage.path} and {b.storage.path} have different classes ({where}); prepare them "
            "in one command, or leave the labels of one out"
        )
