"""`MANIFEST.json`: what a checkpoint consists of, proven by its own hash. No torch here.

Its size is O(tensors): how a tensor is cut, and which rank stored which piece, is a rule that is written once
for all tensors that are cut alike. Only pieces that no such rule describes are listed. Sizes and hashes of
the ranks' files are in a table of their own, `FILES.txt` (`pieces.files`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import orjson

from common.files import look_again
from trainer.checkpoint.pieces import cuts
from trainer.checkpoint.pieces.files import (
    TABLE,
    DamagedError,
    FileEntry,
    Files,
    Listed,
    Table,
    digest,
    encode_table,
)
from trainer.checkpoint.pieces.owners import Cut

FORMAT = "germinal-checkpoint"
VERSION = 3
READABLE = (1, 2, 3)  # 1 lists every piece; 2 all files, and the rank of each piece of a cut
MANIFEST = "MANIFEST.json"

_HASH = re.compile(rb', ?"xxh3_128": ?"([0-9a-f]{32})"\}\n\Z')  # the last member, and the end of the file


@dataclass(frozen=True)
class StoredChunk:
    """A block of a global tensor, and where the checkpoint stores it.

    files: names of safetensors files, one of which has the entry: those of the rank that wrote it.
    key: the entry.
    shape, offset: size and first index of the block in each dim of the global tensor.
    """

    files: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]

    def overlaps(self, offset: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether the block at `offset` of shape `shape` shares an element with this one."""
        sides = zip(self.offset, self.shape, offset, shape, strict=True)
        return all(max(a, b) < min(a + n, b + m) for a, n, b, m in sides)


@dataclass(frozen=True)
class TensorEntry:
    """A global tensor: its safetensors dtype and its shape, and its pieces, which tile it: by `cut`, or where
    that is None, one by one.

    first: where a vector is cut that has the flattened tensor, the tensor's first element in the vector.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredChunk, ...] = ()
    cut: Cut | None = None
    first: int | None = None

    @property
    def stretch(self) -> cuts.Stretch | None:
        """Where the tensor is in the vector that is cut; None where no vector is."""
        return None if self.cut is None or self.first is None else cuts.Stretch(self.first, self.cut.each)


def key_of(name: str, whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]) -> str:
    """Return the entry of a block in its safetensors file: the tensor's own name where the block is all of
    it.
    """
    return name if tuple(shape) == tuple(whole) else f"{name}@{','.join(map(str, offset))}"


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint: what all ranks wrote, its step, and the sequences read by then."""

    files: Files
    tensors: dict[str, TensorEntry]
    step: int
    sequences: int

    def stored(
        self, name: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Iterator[StoredChunk]:
        """Yield the pieces of tensor `name` that share an element with the block at `offset` of shape
        `shape`; of the whole tensor by default. DamagedError as of `Files.of_rank`.
        """
        entry = self.tensors[name]
        offset = (0,) * len(entry.shape) if offset is None else offset
        shape = entry.shape if shape is None else shape
        if entry.cut is None:
            yield from (piece for piece in entry.pieces if piece.overlaps(offset, shape))
            return
        cut = entry.cut
        for number, at, size in cuts.overlapping(cut.parts, entry.shape, offset, shape, entry.stretch):
            files = self.files.of_rank(cut.rank_of(number))
            yield StoredChunk(tuple(files), key_of(name, entry.shape, at, size), size, at)

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(prod(entry.shape) for entry in self.tensors.values())


def encode(manifest: Manifest) -> dict[str, bytes]:
    """Return the manifest's file, and that of the table of files: name → content. The last member of the
    manifest is the hash of the document without it. For rank 0: O(tensors + ranks).
    """
    known: dict[int, int] = {}  # by identity: hashing a cut may take O(ranks)
    numbers: dict[Cut, int] = {}
    tensors: dict[str, Any] = {}
    for name in sorted(manifest.tensors):
        entry = manifest.tensors[name]
        content: dict[str, Any] = {"dtype": entry.dtype, "shape": entry.shape}
        if entry.cut is not None:
            if id(entry.cut) not in known:
                known[id(entry.cut)] = numbers.setdefault(entry.cut, len(numbers))
            content["cut"] = known[id(entry.cut)]
            if entry.first is not None:
                content["first"] = entry.first
        else:
            content["pieces"] = [
                {"file": piece.files[0], "key": piece.key, "shape": piece.shape, "offset": piece.offset}
                for piece in entry.pieces
            ]
        tensors[name] = content
    files = manifest.files
    table, mark = encode_table(files, f"{manifest.step} {manifest.sequences}")
    common = {**files.common, TABLE: FileEntry(len(table), digest(table))}
    body = orjson.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "step": manifest.step,
            "sequences": manifest.sequences,
            "files": {name: common[name] for name in sorted(common)},
            "table": {"ranks": files.ranks, "most": files.most, "mark": mark},
            "cuts": [cut.to_json() for cut in numbers],
            "tensors": tensors,
        }
    )
    return {TABLE: table, MANIFEST: body[:-1] + f',"xxh3_128":"{digest(body)}"}}\n'.encode()}


def read_manifest(folder: Path) -> Manifest:
    """The manifest, proven by its own hash. DamagedError, one line, where it is missing or damaged;
    RuntimeError where it is of another format. `FILES.txt` is read row by row, when its files are asked for.
    """
    path = folder / MANIFEST
    try:
        data = _content(path)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing: not a whole checkpoint") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
    content = _proven(data)
    if content is None:
        raise DamagedError(f"{path}: damaged: its content does not match its own hash")
    if content["format"] != FORMAT or content["version"] not in READABLE:
        raise RuntimeError(
            f"{path}: {content['format']} version {content['version']};"
            f" this program reads {FORMAT} versions {READABLE[0]} to {READABLE[-1]}"
        )
    known = [Cut.from_json(cut) for cut in content.get("cuts", ())]
    files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    table = content.get("table")
    return Manifest(
        Listed(files) if table is None else Table(folder, files, **table),
        {name: tensor_of(entry, known) for name, entry in content["tensors"].items()},
        content["step"],
        content["sequences"],
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        # This host may remember from before the commit, made by another, that there was no such checkpoint.
        if not look_again(path):
            raise
        return path.read_bytes()


def tensor_of(entry: dict[str, Any], known: Sequence[Cut] = ()) -> TensorEntry:
    """Return a tensor's entry from its JSON. known: the manifest's cuts."""
    shape = tuple(entry["shape"])
    if "cut" in entry:
        return TensorEntry(entry["dtype"], shape, cut=known[entry["cut"]], first=entry.get("first"))
    pieces = tuple(
        StoredChunk((piece["file"],), piece["key"], tuple(piece["shape"]), tuple(piece["offset"]))
        for piece in entry["pieces"]
    )
    return TensorEntry(entry["dtype"], shape, pieces)


def _proven(data: bytes) -> dict[str, Any] | None:
    """Return the content, where every byte is what was written; else None.

    Version 1 ended the document with a line end before it was hashed.
    """
    found = _HASH.search(data)
    if not found:
        return None
    old = b": " in found[0]
    body = data[: found.start()] + (b"}\n" if old else b"}")
    end = f', "xxh3_128": "{digest(body)}"}}\n' if old else f',"xxh3_128":"{digest(body)}"}}\n'
    if found[0] != end.encode():
        return None
    try:
        content = orjson.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
