"""A corpus that is open for reading: its manifest, its blocks of documents, the bytes of its shards.

open_corpus(path, cfg)       a corpus at a path or URL, checked as far as can be done quickly
open_storage(path)           only its files: for readers of the manifest alone
corpora_in(folder)           which corpora are at a folder or URL
check_tokenizers(key, a, b)  do the ids of two corpora mean the same?
check_classes(key, a, b)     do their labels?

A *block* is up to `block_documents` neighbouring documents of one shard: the unit that packing stays inside
and that is shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.corpus.columns import MARKED
from data.corpus.local import LocalStorage
from data.corpus.manifest import DTYPES, MANIFEST, TEXT_BYTES, TOKENS, read_manifest
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
        size = manifest.block_documents
        spans = [
            (shard, first, min(size, entry.documents - first))
            for shard, entry in enumerate(manifest.shards)
            for first in range(0, entry.documents, size)
        ]
        table = np.array(spans, dtype=np.int64).reshape(-1, 3)
        self.block_shard, self.block_first, self.block_documents = table.T

    def lengths(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids, UTF-8 bytes of text) of the first `limit` documents, int64 [documents]. Reads every index."""
        indexes = [self.storage.index(shard) for shard in range(len(self.manifest.shards))]
        parts = [(self.text_ids(index), index[TEXT_BYTES].astype(np.int64)) for index in indexes]
        ids, text_bytes = np.concatenate(parts, axis=1)[:, :limit]
        return ids, text_bytes

    def text_ids(self, index: np.ndarray) -> np.ndarray:
        """How many ids of each document are of its text, and no marks, int64 [documents].

        index: columns of the corpus's index, [rows, documents].
        """
        tokens = index[TOKENS].astype(np.int64)
        row = self.manifest.row(MARKED)
        if row is None:
            return tokens
        marked = index[row].astype(np.int64)
        return np.where(marked >= 0, marked, tokens)

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


def open_storage(path: str, cache_dir: str = "", cache_bytes: int = 0) -> Storage:
    """The files of the corpus at a path or URL. Raises ValueError where there is none."""
    return RemoteStorage(path, cache_dir, cache_bytes) if is_remote(path) else LocalStorage(path)


def open_corpus(path: str, cfg: DataConfig) -> Corpus:
    """The corpus at a path or URL; `cfg` says where a remote one is cached.

    Raises ValueError where there is none or it is empty, RuntimeError where its manifest or the length of a
    local shard is damaged.
    """
    corpus = Corpus(open_storage(path, cfg.cache_dir, cfg.cache_bytes))
    corpus.storage.check_lengths()
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
