"""Some documents of a corpus as a corpus of its own, with the same tokenizer, classes and columns."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.files import fsync_folder, write_durably
from common.mapped_file import map_file
from data.corpus.columns import LABEL, NO_LABEL, recast
from data.corpus.index import read_index, write_array
from data.corpus.local import LocalStorage
from data.corpus.manifest import DTYPES, INDEX_ROWS, MANIFEST, Manifest, ShardEntry, write_manifest
from data.corpus.scan import token_array
from data.corpus.shards import TokenShardWriter
from data.corpus.tar import Sample, samples

SHARD = "shard-000000.tar"
DRAFT = ".tmp-"  # with which the names of folders begin that are being made


def labels(path: str) -> np.ndarray:
    """The place of each document's class in the manifest's `classes`, int64 [documents]; −1 for none.

    Raises ValueError where there is no corpus, RuntimeError where it is damaged.
    """
    storage = LocalStorage(path)
    manifest = storage.manifest()
    row = manifest.row(LABEL)
    parts = [storage.index(shard) for shard in range(len(manifest.shards))]
    return np.concatenate(
        [np.full(part.shape[1], NO_LABEL, np.uint64) if row is None else part[row] for part in parts]
    ).astype(np.int64)


def write_subsets(
    path: str, wanted: Mapping[Path, Sequence[int]], guard: Callable[[], None] = lambda: None
) -> None:
    """Write corpora of some documents of the local corpus at `path` each, for which its shards are read once.

    wanted: folder of a new corpus → the numbers of its documents in the old one, in their order. A folder
        that is a corpus already stays as it is.
    guard: raises where this process may write no more.

    Each is made under a name that no other process has, and comes into place in one step.

    Raises RuntimeError, one line, where a shard is damaged.
    """
    missing = {folder: numbers for folder, numbers in wanted.items() if not (folder / MANIFEST).is_file()}
    if not missing:
        return
    storage = LocalStorage(path)
    manifest = storage.manifest()
    documents = _Documents(path, manifest)
    for folder, numbers in missing.items():
        guard()
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{DRAFT}{folder.name}-*"):  # by a process that was killed
            shutil.rmtree(left)
        draft = folder.with_name(f"{DRAFT}{folder.name}-{secrets.token_hex(8)}")
        draft.mkdir()
        write_durably(draft / manifest.tokenizer.file, storage.tokenizer())
        entry = _write_shard(draft / SHARD, documents, numbers, manifest)
        about = [{"name": path, "documents": len(numbers)}]
        write_manifest(draft, replace(manifest, shards=(entry,), sources=about))
        guard()
        shutil.rmtree(folder, ignore_errors=True)  # no corpus: what an earlier version left of one
        draft.rename(folder)
        fsync_folder(folder.parent)


class _Documents:
    """The documents of a local corpus by number, ready to be copied."""

    def __init__(self, path: str, manifest: Manifest) -> None:
        self._dtype = manifest.dtype
        self._samples: list[tuple[memoryview, str, Sample]] = []
        for entry in manifest.shards:
            where = f"{path}/{entry.file}"
            view = map_file(Path(where))
            self._samples += ((view, where, sample) for sample in samples(view, where))

    def copy(self, number: int, writer: TokenShardWriter) -> None:
        """Append a document to another shard, unchanged."""
        view, where, sample = self._samples[number]
        raw = {
            extension: bytes(view[member.offset : member.offset + member.size])
            for extension, member in sample.members.items()
        }
        _, ids = token_array(view, sample, where, self._dtype)
        about = json.loads(raw.pop("json"))
        del raw["npy"]
        writer.add(sample.key, ids, about.pop("text_bytes"), about, raw)


def _write_shard(path: Path, documents: _Documents, numbers: Sequence[int], manifest: Manifest) -> ShardEntry:
    """Write one shard, whose index has the columns of `manifest`; return its entry."""
    writer = TokenShardWriter(path, DTYPES[manifest.dtype])
    for number in numbers:
        documents.copy(number, writer)
    own = writer.columns
    entry = writer.close()
    index = read_index(path.with_name(entry.index_file), entry, INDEX_ROWS + len(own.names))
    whole = recast(index, own, manifest.further, INDEX_ROWS)
    return replace(entry, index_xxh3=write_array(path.with_name(entry.index_file), whole))
