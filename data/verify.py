"""`germinal data verify DIR`: is every byte and every sample of a corpus what its manifest and indexes say?

verify(folder) → findings, empty when all is well
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.manifest import (
    CRC,
    DTYPES,
    MANIFEST,
    OFFSET,
    TOKENS,
    Manifest,
    ShardEntry,
    file_sha256,
    read_index,
    read_manifest,
)
from data.scan import map_file, token_index


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `sample` and `offset` (in bytes) where they are known, else "" and -1."""

    file: str
    problem: str
    sample: str = ""
    offset: int = -1


def corpora_in(folder: str | Path) -> list[Path]:
    """The corpus at `folder`, or the corpora right below it (train, heldout).

    Raises ValueError when there is none.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    if not found:
        read_manifest(folder)  # says what is missing
    return found


def verify(folder: str | Path, progress: Callable[[int], None] = lambda done: None) -> list[Finding]:
    """Reads every byte of every corpus at `folder`; what it found. `progress` is told of bytes done.

    Raises ValueError when there is no corpus.
    """
    return [finding for corpus in corpora_in(folder) for finding in _verify_corpus(corpus, progress)]


def _verify_corpus(folder: Path, progress: Callable[[int], None]) -> list[Finding]:
    try:
        manifest = read_manifest(folder)
    except RuntimeError as error:
        return [Finding(str(folder / MANIFEST), str(error))]
    findings = []
    tokenizer = folder / manifest.tokenizer.file
    if not tokenizer.is_file():
        findings.append(Finding(str(tokenizer), "the tokenizer is missing"))
    elif file_sha256(tokenizer) != manifest.tokenizer.sha256:
        findings.append(Finding(str(tokenizer), "the tokenizer is not the one the corpus was made with"))
    known = {entry.file for entry in manifest.shards}
    findings += [
        Finding(str(path), f"a shard that {MANIFEST} does not list")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in known
    ]
    for entry in manifest.shards:
        findings += _verify_shard(folder, manifest, entry)
        progress(entry.bytes)
    return findings


def _verify_shard(folder: Path, manifest: Manifest, entry: ShardEntry) -> list[Finding]:
    path = folder / entry.file
    findings: list[Finding] = []
    index: np.ndarray | None = None
    try:
        index = read_index(folder / entry.index_file, entry)
    except RuntimeError as error:
        findings.append(Finding(str(folder / entry.index_file), str(error)))
    try:
        view = map_file(path)
    except OSError as error:
        return [*findings, Finding(str(path), f"cannot be read: {error.strerror}")]
    if len(view) != entry.bytes:
        findings.append(Finding(str(path), f"has {len(view)} bytes, {MANIFEST} says {entry.bytes}"))
    elif hashlib.sha256(view).hexdigest() != entry.sha256:
        findings.append(Finding(str(path), f"its SHA-256 is not the one in {MANIFEST}"))
    try:
        scanned, keys = token_index(view, str(path), dtype=manifest.dtype, vocab=manifest.tokenizer.vocab)
    except (RuntimeError, ValueError) as error:
        findings.append(Finding(str(path), str(error)))
        return findings + ([] if index is None else _damaged_documents(path, view, index, manifest))
    if index is None:
        return findings
    if scanned.shape != index.shape:
        counts = f"{scanned.shape[1]} documents, its index {index.shape[1]}"
        return [*findings, Finding(str(path), f"holds {counts}")]
    for place in np.flatnonzero((scanned != index).any(axis=0)).tolist():
        offset = int(scanned[OFFSET, place])
        findings.append(
            Finding(str(path), "is not the document its index was made from", keys[place], offset)
        )
    return findings


def _damaged_documents(path: Path, view: memoryview, index: np.ndarray, manifest: Manifest) -> list[Finding]:
    """The documents of a shard that no longer scans whose ids are not those of the index."""
    width = DTYPES[manifest.dtype].itemsize
    findings = []
    for place, (offset, tokens, crc) in enumerate(index[[OFFSET, TOKENS, CRC]].T.tolist()):
        if zlib.crc32(view[offset : offset + tokens * width]) != crc:
            findings.append(
                Finding(str(path), "its ids are damaged", f"document {place} of the shard", offset)
            )
    return findings
