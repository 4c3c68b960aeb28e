"""The files of a corpus folder, and `manifest.json`, which describes them.

    DIR/manifest.json          written last, by rename: without it the folder is not a corpus
    DIR/tokenizer.json
    DIR/shard-000000.tar       WebDataset; a document is KEY.npy (1-D token ids, no separator), KEY.json and
                               maybe a picture, such as KEY.jpg
    DIR/shard-000000.idx.npy   its index, uint64 [4 + columns, documents]: rows OFFSET, TOKENS, CRC,
                               TEXT_BYTES, and those of `data.corpus.columns` that the manifest names

Training finds documents by the index; the tar stays readable by any WebDataset reader. `data.corpus.shards`
writes a shard and its index, `write_manifest` completes the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_atomically
from data.corpus import columns as further
from data.corpus.columns import Columns

TEMPLATE = "chat_template"  # key of `Manifest.prepare`: the text of the template of a corpus of conversations
TEMPLATE_FILE = "chat_template.jinja"  # the same, beside the tokenizer, where `transformers` looks for it
MANIFEST = "manifest.json"
FORMAT = "germinal-corpus"
VERSION = 1
VERSION_WITH_COLUMNS = 2  # programs that read version 1 alone do not know the index's further rows
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

# Rows of an index.
OFFSET = 0  # of the raw ids in the tar, in bytes
TOKENS = 1  # ids in the document
CRC = 2  # zlib.crc32 of the raw ids
TEXT_BYTES = 3  # UTF-8 bytes of the text the ids came from
INDEX_ROWS = 4

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEX = re.compile(r"[0-9a-f]+")
DERIVED = ("documents", "tokens", "text_bytes", "fingerprint")
_WITH_COLUMNS = ("columns", "classes", "media")  # left out of a manifest that has none of them
# Key of the hash of the rest of the manifest. Corpora of earlier versions do not have it and are read too.
_OWN_HASH = "sha256"


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer that made the ids.

    file, sha256: its file in the corpus folder, and the hash of that.
    vocab: ids are below it.
    eos: the id that separates documents.
    """

    file: str
    sha256: str
    vocab: int
    eos: int


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    file, bytes, sha256: the tar in the corpus folder, its length and its hash.
    documents, tokens, text_bytes: sums over the shard; separators are not counted.
    index_xxh3: xxh3_128 of the index file.
    """

    file: str
    bytes: int
    sha256: str
    documents: int
    tokens: int
    text_bytes: int
    index_xxh3: str

    @property
    def index_file(self) -> str:
        """Name of the index beside the shard."""
        return index_name(self.file)


@dataclass(frozen=True)
class Manifest:
    """A corpus.

    tokenizer: the tokenizer that made the ids.
    dtype: type of the ids in the shards, a key of DTYPES.
    block_documents: documents of a block, at most; see `data.corpus.corpus`.
    shards: all shards, in order.
    prepare, sources: how the corpus was made, from what: for people, `has_template` and `Stream.tags`.
    columns, classes, media: what the indexes hold beyond the first four rows, as in
        `data.corpus.columns.Columns`; empty for a corpus of text without labels.
    """

    tokenizer: TokenizerEntry
    dtype: str
    block_documents: int
    shards: tuple[ShardEntry, ...]
    prepare: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Any] = ()
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    media: tuple[str, ...] = ()

    @property
    def further(self) -> Columns:
        """The columns of the indexes beyond the first four."""
        return Columns(self.columns, self.classes, self.media)

    @property
    def index_rows(self) -> int:
        """Rows of every index."""
        return INDEX_ROWS + len(self.columns)

    def row(self, column: str) -> int | None:
        """The row of an index that holds a column of `data.corpus.columns`; None where none does."""
        return INDEX_ROWS + self.columns.index(column) if column in self.columns else None

    @property
    def media_rows(self) -> list[int]:
        """The rows of an index that hold a picture's first byte, length and CRC-32; none without them."""
        return [row for column in further.MEDIA if (row := self.row(column)) is not None]

    @property
    def version(self) -> int:
        """The version of the format."""
        return VERSION_WITH_COLUMNS if self.further != Columns() else VERSION

    @cached_property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    @cached_property
    def tokens(self) -> int:
        """Token ids in all shards, separators not counted."""
        return sum(shard.tokens for shard in self.shards)

    @cached_property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents' text."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer's template is around each document; not in corpora of earlier versions."""
        return "template" in self.prepare.get("settings", {})

    @property
    def ids(self) -> tuple[str, int, str]:
        """(SHA-256 of the tokenizer, separator, type): equal where the ids of two corpora mean the same."""
        return self.tokenizer.sha256, self.tokenizer.eos, self.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that determines the stream: tokenizer, separator, id width, blocks, shards' bytes,
        names of labels.
        """
        parts: list[Any] = [
            self.version,
            self.tokenizer.sha256,
            self.tokenizer.eos,
            self.dtype,
            self.block_documents,
            [[shard.sha256, shard.index_xxh3] for shard in self.shards],
        ]
        if self.version == VERSION_WITH_COLUMNS:
            parts += [self.columns, self.classes, self.media]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def token_dtype(vocab: int) -> str:
    """The narrowest id type for a vocabulary."""
    return "uint16" if vocab <= 1 << 16 else "uint32"


def index_name(shard: str) -> str:
    """shard-000000.tar → shard-000000.idx.npy"""
    return shard.removesuffix(".tar") + ".idx.npy"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Complete a corpus: write `manifest.json` in one step. All shards and indexes must be in place."""
    write_atomically(folder / MANIFEST, encode_manifest(manifest), draft=folder / f"{MANIFEST}.tmp")


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    document = {"format": FORMAT, "version": manifest.version, **asdict(manifest)}
    if manifest.version == VERSION:
        for key in _WITH_COLUMNS:
            del document[key]
    document |= {key: getattr(manifest, key) for key in DERIVED}
    document[_OWN_HASH] = _own_hash(json.loads(json.dumps(document)))
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a corpus folder.

    Raises ValueError when the folder is missing or not a corpus, RuntimeError when its manifest is damaged.
    """
    return parse_manifest(read_manifest_bytes(folder), str(Path(folder) / MANIFEST))


def read_manifest_bytes(folder: Path | str) -> bytes:
    """The content of a corpus folder's manifest. Raises ValueError when the folder is not a corpus."""
    try:
        return (Path(folder) / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        missing = f"it has no {MANIFEST}; "
        if not Path(folder).is_dir():
            missing = "no such folder; "
            if not Path(folder).is_absolute():
                missing = f"no such folder in {Path.cwd()}, where this runs; run it where the corpus is, or "
        raise ValueError(f"{folder} is not a corpus: {missing}make one with `germinal prepare`") from None


def _own_hash(document: dict[str, Any]) -> str:
    """SHA-256 of a manifest's contents, whatever its spaces and the order of its keys."""
    rest = {key: value for key, value in document.items() if key != _OWN_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(text: bytes, where: str) -> Manifest:
    """A manifest from its bytes; `where` names it in errors. Raises ValueError or RuntimeError, one line."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format is {document['format']!r}, not {FORMAT!r}")
        version = document["version"]
        if version not in (VERSION, VERSION_WITH_COLUMNS):
            raise LookupError(
                f"{where} has format version {version}, this program reads {VERSION} and "
                f"{VERSION_WITH_COLUMNS}"
            )
        unknown = document.keys() - {"format", "version", *DERIVED, _OWN_HASH, *Manifest.__dataclass_fields__}
        if unknown:  # else damage to its name would hide the hash
            raise ValueError(f"it has an unknown key {min(unknown)!r}")
        if _OWN_HASH in document and document[_OWN_HASH] != _own_hash(document):
            raise ValueError("its contents do not have the hash it states")
        manifest = Manifest(
            tokenizer=TokenizerEntry(**document["tokenizer"]),
            dtype=document["dtype"],
            block_documents=document["block_documents"],
            shards=tuple(ShardEntry(**shard) for shard in document["shards"]),
            prepare=document["prepare"],
            sources=document["sources"],
            **{key: tuple(document.get(key, ())) for key in _WITH_COLUMNS},
        )
        _check(manifest)
        if document["fingerprint"] != manifest.fingerprint:
            raise ValueError("its fingerprint does not match its contents")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise RuntimeError(
            f"{where} is damaged ({reason}); restore it or run `germinal prepare` again"
        ) from None
    except LookupError as error:
        raise ValueError(f"{error}; run `germinal prepare` again") from None
    return manifest


def _check(manifest: Manifest) -> None:
    further.check(manifest.further)
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}, not one of {list(DTYPES)}")
    tokenizer = manifest.tokenizer
    if not 0 <= tokenizer.eos < tokenizer.vocab <= 1 << (8 * DTYPES[manifest.dtype].itemsize):
        raise ValueError(f"eos {tokenizer.eos} and vocab {tokenizer.vocab} do not fit {manifest.dtype}")
    if manifest.block_documents < 1:
        raise ValueError(f"block_documents is {manifest.block_documents}")
    seen: set[str] = set()
    for shard in manifest.shards:
        if not _PLAIN_NAME.fullmatch(shard.file) or not shard.file.endswith(".tar"):
            raise ValueError(f"shard file {shard.file!r} is not a plain name ending in .tar")
        if shard.file in seen:
            raise ValueError(f"shard {shard.file} is listed twice")
        seen.add(shard.file)
        counts = (shard.bytes, shard.documents, shard.tokens, shard.text_bytes)
        if any(not isinstance(count, int) or count < 0 for count in counts):
            raise ValueError(f"shard {shard.file} has counts {counts}")
        if not (_HEX.fullmatch(shard.sha256) and _HEX.fullmatch(shard.index_xxh3)):
            raise ValueError(f"shard {shard.file} has a hash that is not hex")
