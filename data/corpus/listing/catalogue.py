"""The catalogue of a corpus: what a start must know of all shards, in one small file that is mapped.

    DIR/catalogue-HASH.safetensors    HASH: the first digits of the xxh3_128 of DIR/manifest.json

It holds the manifest, with the entries of its shards as arrays, and the counts of every block
(`.blocks`). With it a corpus opens in the same time and memory whatever its shards; without, as in
corpora of earlier versions, the manifest is parsed, and the blocks are counted from the indexes.

close_corpus(folder, manifest)     completes a corpus: catalogue, then manifest
counted(path, entry, manifest)     the counts of the blocks of one shard, from its index
look_up(content, where, tables)    what a start knows of a corpus, by its catalogue where it has one
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import xxhash

from common.files import write_atomically
from data.corpus.index import read_index
from data.corpus.listing.blocks import COUNTS, Blocks, block_bounds, count_blocks
from data.corpus.listing.tables import Table, Tables
from data.corpus.manifest import (
    DERIVED,
    MANIFEST,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    encode_manifest,
    parse_manifest,
)

VERSION = 1
CATALOGUES = "catalogue-"  # with which the names of such files begin
_TEXTS = ("file", "sha256", "index_xxh3")  # of ShardEntry
_NUMBERS = ("bytes", "documents", "tokens", "text_bytes")


class ShardList(Sequence[ShardEntry]):
    """The entries of shards, made when they are asked for.

    arrays: of `Catalogue` files: TEXTS as bytes, uint8 [shards, longest], `numbers`, int64 [4, shards].
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._texts = [arrays[name] for name in _TEXTS]
        self._numbers = arrays["numbers"]
        self.documents: np.ndarray = self._numbers[_NUMBERS.index("documents")]

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, place: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ShardEntry]: ...
    def __getitem__(self, place: int | slice) -> ShardEntry | Sequence[ShardEntry]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        texts = (bytes(text[place]).rstrip(b"\0").decode() for text in self._texts)
        numbers = self._numbers[:, place].tolist()
        values: dict[str, Any] = dict(zip(_TEXTS, texts)) | dict(zip(_NUMBERS, numbers))
        return ShardEntry(**values)

    def __iter__(self) -> Iterator[ShardEntry]:
        return (self[place] for place in range(len(self)))


def documents_of_shards(manifest: Manifest) -> np.ndarray:
    """Documents of each shard, int64 [shards]."""
    if isinstance(manifest.shards, ShardList):
        return manifest.shards.documents
    return np.array([entry.documents for entry in manifest.shards], dtype=np.int64)


@dataclass(frozen=True)
class Listing:
    """What a start knows of a corpus.

    manifest: its manifest.
    blocks: the counts of its blocks, where there is a catalogue.
    tables: where tables that were made from the corpus are kept.
    digest: of the file `manifest.json`, as of `manifest_digest`.
    """

    manifest: Manifest
    blocks: Blocks | None
    tables: Tables
    digest: str

    @property
    def is_damaged(self) -> bool:
        """Whether the catalogue is damaged where it was looked for, and was not found whole elsewhere."""
        return self.blocks is None and self.tables.was_damaged(catalogue_name(self.digest))

    def made(self, blocks: Blocks) -> tuple[str, Table]:
        """Name and content of the catalogue, of a corpus that has none."""
        return catalogue_name(self.digest), catalogue(self.digest, self.manifest, blocks)


def look_up(
    content: bytes, where: str, tables: Tables, fetched: Callable[[str], Table | None] = lambda name: None
) -> Listing:
    """What a corpus's catalogue lists, or without one its manifest.

    content, where: the file `manifest.json`, and its path or URL for messages.
    tables: where the catalogue may be.
    fetched: name → the catalogue from elsewhere, where it is in none of these.

    Raises ValueError or RuntimeError as `parse_manifest`.
    """
    digest = manifest_digest(content)
    name, identity = catalogue_name(digest), _identity(digest)
    found = tables.read(name, identity)
    if found is None and (found := fetched(name)) is not None:
        tables.damaged.clear()  # of a copy that was fetched anew
    if found is None or not identity.items() <= found.head.items():
        return Listing(parse_manifest(content, where), None, tables, digest)
    return Listing(*listed(found), tables, digest)


def manifest_digest(content: bytes) -> str:
    """The hash of a file `manifest.json` that its catalogue bears."""
    return xxhash.xxh3_128(content).hexdigest()


def catalogue_name(digest: str) -> str:
    """The name of the catalogue that goes with a manifest file of this hash."""
    return f"{CATALOGUES}{digest[:16]}"


def listed(table: Table) -> tuple[Manifest, Blocks]:
    """The manifest and the counts of the blocks that a catalogue holds."""
    about = dict(table.head["about"])
    about["tokenizer"] = TokenizerEntry(**about["tokenizer"])
    for key in ("columns", "classes", "media"):
        about[key] = tuple(about[key])
    manifest = Manifest(**about, shards=ShardList(table.arrays))  # type: ignore[arg-type]
    vars(manifest).update(table.head["derived"])  # cached properties, which would go over all shards
    return manifest, {name: table.arrays[f"blocks.{name}"] for name in COUNTS}


def catalogue(digest: str, manifest: Manifest, blocks: Blocks) -> Table:
    """The catalogue that goes with a manifest file of this hash."""
    about = {one.name: getattr(manifest, one.name) for one in fields(Manifest) if one.name != "shards"}
    about |= {"tokenizer": vars(manifest.tokenizer), "prepare": dict(manifest.prepare)}
    derived = {key: getattr(manifest, key) for key in DERIVED}
    arrays = {name: _as_bytes([getattr(entry, name) for entry in manifest.shards]) for name in _TEXTS}
    numbers = [[getattr(entry, name) for entry in manifest.shards] for name in _NUMBERS]
    arrays["numbers"] = np.array(numbers, dtype=np.int64)
    arrays |= {f"blocks.{name}": np.asarray(blocks[name], dtype=np.int64) for name in COUNTS}
    head = _identity(digest) | {"about": about, "derived": derived}
    return Table(json.loads(json.dumps(head)), arrays)  # as it is read again: lists for tuples


def close_corpus(folder: Path, manifest: Manifest) -> None:
    """Complete a corpus: write its catalogue, then `manifest.json`. All shards and indexes must be in place.

    Raises RuntimeError where an index is not the one that the manifest names.
    """
    content = encode_manifest(manifest)
    parts = [counted(folder / entry.index_file, entry, manifest) for entry in manifest.shards]
    name = catalogue_name(digest := manifest_digest(content))
    Tables([folder]).write(name, catalogue(digest, manifest, join_blocks(parts)))
    write_atomically(folder / MANIFEST, content, draft=folder / f"{MANIFEST}.tmp")
    for path in folder.glob(f"{CATALOGUES}*"):
        if path.stem != name:  # of a manifest that a killed program did not write
            path.unlink()


def counted(path: Path, entry: ShardEntry, manifest: Manifest) -> Blocks:
    """The counts of the blocks of a shard whose index is at `path`. Raises RuntimeError as `read_index`."""
    index = read_index(path, entry, manifest.index_rows).astype(np.int64)
    return count_blocks(manifest, index, block_bounds(index.shape[1], manifest.block_documents))


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """The counts of the blocks of shards that follow one another."""
    none = np.zeros(0, dtype=np.int64)
    return {name: np.concatenate([none, *(part[name] for part in parts)]) for name in COUNTS}


def _identity(digest: str) -> dict[str, Any]:
    return {"kind": "catalogue", "version": VERSION, "manifest": digest}


def _as_bytes(texts: Sequence[str]) -> np.ndarray:
    """ASCII texts, uint8 [texts, longest]."""
    array = np.array([text.encode() for text in texts] or [b""], dtype=np.bytes_)
    return array.view(np.uint8).reshape(len(array), -1)[: len(texts)]
