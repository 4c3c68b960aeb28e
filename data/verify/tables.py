"""The tables beside a corpus, held against its manifest and indexes: what they count is counted again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from common.mapped_file import map_file
from data.corpus.index import read_index
from data.corpus.listing.blocks import Blocks, block_bounds, count_blocks
from data.corpus.listing.catalogue import CATALOGUES, catalogue, catalogue_name, join_blocks
from data.corpus.listing.tables import Table, parse
from data.corpus.manifest import MANIFEST, Manifest, ShardEntry
from data.stream.packing.counting import WINDOWS, windows_identity, windows_in, windows_name
from data.stream.packing.kinds import MOST_SEQ_LEN, PACKINGS

_REMEDY = "remove the file, and the next start does without it or makes it anew"


class Files(Protocol):
    """The files of a corpus."""

    def opened(self, file: str) -> contextlib.AbstractContextManager[Path]:
        """The path of a file, which need not exist."""

    def named(self, pattern: str) -> list[str]:
        """Every file of the corpus that is named so."""


class TablesCheck:
    """The tables beside a corpus. Give every index to `add`, then ask for the `findings`.

    A corpus may lack its tables: a start makes them.

    digest: of the corpus's manifest, as of `manifest_digest`.
    """

    def __init__(self, files: Files, manifest: Manifest, digest: str) -> None:
        self._manifest, self._digest = manifest, digest
        self._own = f"{catalogue_name(digest)}.safetensors"
        self._problems: dict[str, str] = {}
        self._found: dict[str, Table] = {}
        found = {*files.named(f"{CATALOGUES}*.safetensors"), *files.named(f"{WINDOWS}*.safetensors")}
        for file in sorted({self._own, *found}):
            with files.opened(file) as path:
                if path.is_file():
                    self._read(file, path)
        self._blocks: list[Blocks] = []
        self._windows: dict[str, list[np.ndarray]] = {
            file: [np.zeros(0, dtype=np.int64)] for file in self._found if file != self._own
        }

    def _read(self, file: str, path: Path) -> None:
        try:
            found = parse(map_file(path))
        except (OSError, ValueError) as error:
            self._problems[file] = f"damaged ({error})"
            return
        if file.startswith(CATALOGUES) and file != self._own:
            self._problems[file] = f"of another {MANIFEST}"
        elif file != self._own and not _is_of(found, file, self._manifest):
            self._problems[file] = "not of this corpus, or not of what its name says"
        else:
            self._found[file] = found

    def add(self, index: Path, entry: ShardEntry) -> None:
        """Count what the index of the next shard has, where it is not damaged."""
        try:
            documents = read_index(index, entry, self._manifest.index_rows).astype(np.int64)
        except RuntimeError:  # told already
            return
        bounds = block_bounds(documents.shape[1], self._manifest.block_documents)
        self._blocks.append(count_blocks(self._manifest, documents, bounds))
        for file, windows in self._windows.items():
            head = self._found[file].head
            windows.append(windows_in(self._manifest, documents, head["packing"], head["seq_len"]))

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield (file, what is wrong with it, in one line). Where an index is damaged, nothing is said of
        what the tables count.
        """
        if len(self._blocks) == len(self._manifest.shards):
            for file, found in self._found.items():
                if what := _difference(found, self._right(file)):
                    self._problems[file] = f"its {what} is not what {MANIFEST} and the indexes say"
        for file, problem in sorted(self._problems.items()):
            yield file, f"{problem}: {_REMEDY}"

    def _right(self, file: str) -> Table:
        """A table as it should be."""
        if file == self._own:
            return catalogue(self._digest, self._manifest, join_blocks(self._blocks))
        return Table(self._found[file].head, {"windows": np.concatenate(self._windows[file])})


def _is_of(found: Table, file: str, manifest: Manifest) -> bool:
    """Whether the windows in a file are those of a corpus, and of the packing in its name."""
    packing, seq_len = found.head.get("packing"), found.head.get("seq_len")
    if type(packing) is not str or packing not in PACKINGS:
        return False
    if type(seq_len) is not int or not 1 <= seq_len <= MOST_SEQ_LEN:
        return False
    named = f"{windows_name(manifest, packing, seq_len)}.safetensors"
    return file == named and found.head == windows_identity(manifest, packing, seq_len)


def _difference(found: Table, right: Table) -> str:
    """The first part of a table that is not as in another; "" where all are."""
    parts = [key for key in right.head if found.head.get(key) != right.head[key]]
    none = np.zeros(0)
    arrays = [
        name
        for name, array in right.arrays.items()
        if not np.array_equal(found.arrays.get(name, none), array)
    ]
    return next(iter([*parts, *arrays]), "")
