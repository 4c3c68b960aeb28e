"""`germinal data verify DIR`: compare every byte and every sample of a corpus with its manifest and indexes.

verify(folder) → findings, none where the corpus is whole
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.mapped_file import map_file
from data.corpus.corpus import corpora_in
from data.corpus.index import read_index
from data.corpus.listing.catalogue import manifest_digest
from data.corpus.manifest import (
    CRC,
    DTYPES,
    MANIFEST,
    OFFSET,
    TOKENS,
    Manifest,
    ShardEntry,
    file_sha256,
    parse_manifest,
    read_manifest_bytes,
)
from data.corpus.remote.fetching import is_remote
from data.corpus.remote.remote_storage import RemoteStorage
from data.corpus.scan import token_index
from data.verify.tables import TablesCheck


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    file: path or URL.
    problem: one line.
    sample, offset: key, and the first byte of the ids or of the picture, where they are known; else "" and
        -1.
    """

    file: str
    problem: str
    sample: str = ""
    offset: int = -1


class _Local:
    """The files of a corpus folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    @contextlib.contextmanager
    def opened(self, file: str) -> Iterator[Path]:
        """The file's path, whether the file exists or not."""
        yield self._folder / file

    def named(self, pattern: str) -> list[str]:
        """Every file of the folder that is named so."""
        return sorted(path.name for path in self._folder.glob(pattern))


class _Remote:
    """The files of a corpus at a URL, each fetched into the folder `scratch` for as long as it is open."""

    def __init__(self, url: str, scratch: str) -> None:
        self._storage, self._scratch = RemoteStorage(url, "", 0), Path(scratch)

    @contextlib.contextmanager
    def opened(self, file: str) -> Iterator[Path]:
        """See `_Local`."""
        path = self._scratch / file
        with contextlib.suppress(FileNotFoundError):
            self._storage.download(file, path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def content(self) -> bytes:
        """The file manifest.json."""
        return self._storage.manifest_bytes()

    def named(self, pattern: str) -> list[str]:
        """None: a web server does not list its files."""
        return []


def verify(folder: str | Path, progress: Callable[[int], None] = lambda done: None) -> list[Finding]:
    """Read every byte of every corpus at `folder` and return what is wrong.

    progress: called with the bytes of each shard when it is done.

    Raises ValueError where there is no corpus, RuntimeError where a store does not answer.
    """
    return [finding for corpus in corpora_in(folder) for finding in _verify_at(corpus, progress)]


def _verify_at(corpus: str, progress: Callable[[int], None]) -> list[Finding]:
    if is_remote(corpus):
        with tempfile.TemporaryDirectory() as scratch:
            remote = _Remote(corpus, scratch)
            return _verify_corpus(corpus, remote, remote.content(), progress)
    return _verify_corpus(corpus, _Local(corpus), read_manifest_bytes(corpus), progress)


def _verify_corpus(
    corpus: str, files: _Local | _Remote, content: bytes, progress: Callable[[int], None]
) -> list[Finding]:
    try:
        manifest = parse_manifest(content, f"{corpus}/{MANIFEST}")  # not as the catalogue has it
    except RuntimeError as error:
        return [Finding(f"{corpus}/{MANIFEST}", str(error))]
    findings = []
    with files.opened(manifest.tokenizer.file) as tokenizer:
        name = f"{corpus}/{manifest.tokenizer.file}"
        if not tokenizer.is_file():
            findings.append(Finding(name, "the tokenizer is missing"))
        elif file_sha256(tokenizer) != manifest.tokenizer.sha256:
            findings.append(Finding(name, "the tokenizer is not the one the corpus was made with"))
    known = {entry.file for entry in manifest.shards}
    findings += [
        Finding(f"{corpus}/{file}", f"a shard that {MANIFEST} does not list")
        for file in files.named("*.tar")
        if file not in known
    ]
    tables = TablesCheck(files, manifest, manifest_digest(content))
    for entry in manifest.shards:
        with files.opened(entry.file) as shard, files.opened(entry.index_file) as index:
            findings += _verify_shard(corpus, shard, index, manifest, entry)
            tables.add(index, entry)
        progress(entry.bytes)
    return findings + [Finding(f"{corpus}/{file}", problem) for file, problem in tables.findings()]


def _verify_shard(
    corpus: str, path: Path, index_path: Path, manifest: Manifest, entry: ShardEntry
) -> list[Finding]:
    name = f"{corpus}/{entry.file}"
    findings: list[Finding] = []
    index: np.ndarray | None = None
    try:
        index = read_index(index_path, entry, manifest.index_rows)
    except RuntimeError as error:
        findings.append(Finding(f"{corpus}/{entry.index_file}", str(error)))
    try:
        view = map_file(path)
    except OSError as error:
        return [*findings, Finding(name, f"cannot be read: {error.strerror}")]
    if len(view) != entry.bytes:
        findings.append(Finding(name, f"has {len(view)} bytes, {MANIFEST} says {entry.bytes}"))
    elif hashlib.sha256(view).hexdigest() != entry.sha256:
        findings.append(Finding(name, f"its SHA-256 is not the one in {MANIFEST}"))
    try:
        scanned, keys = token_index(
            view, name, dtype=manifest.dtype, vocab=manifest.tokenizer.vocab, further=manifest.further
        )
    except (RuntimeError, ValueError) as error:
        findings.append(Finding(name, str(error)))
        return findings + ([] if index is None else _damaged_documents(name, view, index, manifest))
    if index is None:
        return findings
    if scanned.shape != index.shape:
        counts = f"{scanned.shape[1]} documents, its index {index.shape[1]}"
        return [*findings, Finding(name, f"holds {counts}")]
    media = manifest.media_rows
    differs = scanned != index
    pictures = differs[media].any(axis=0)
    for place in np.flatnonzero(pictures).tolist():
        offset = int(index[media[0], place])
        findings.append(Finding(name, "its picture is damaged", keys[place], offset))
    differs[media] = False
    for place in np.flatnonzero(differs.any(axis=0)).tolist():
        offset = int(scanned[OFFSET, place])
        findings.append(Finding(name, "is not the document its index was made from", keys[place], offset))
    return findings


def _damaged_documents(name: str, view: memoryview, index: np.ndarray, manifest: Manifest) -> list[Finding]:
    """For a shard that cannot be scanned: the documents whose ids, or whose picture, do not have the checksum
    in the index.
    """
    width = DTYPES[manifest.dtype].itemsize
    parts = [("its ids are damaged", index[[OFFSET, TOKENS, CRC]], width)]
    media = manifest.media_rows
    if media:
        parts.append(("its picture is damaged", index[media], 1))
    return [
        Finding(name, problem, f"document {place} of the shard", offset)
        for problem, columns, unit in parts
        for place, (offset, count, crc) in enumerate(columns.T.tolist())
        if zlib.crc32(view[offset : offset + count * unit]) != crc
    ]
