"""`MANIFEST.json`: what a checkpoint consists of, proven by its own hash. No torch here."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import xxhash

FORMAT = "germinal-checkpoint"
VERSION = 1
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint: its size, and the xxh3_128 of its bytes in hexadecimal."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class StoredChunk:
    """A block of a global tensor, and where the checkpoint stores it.

    file: name of the safetensors file.
    key: the entry in that file.
    shape, offset: size and first index of the block in each dim of the global tensor.
    """

    file: str
    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """A global tensor: its safetensors dtype, its shape, and the stored chunks that tile it (`pieces`)."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class Part:
    """What one rank wrote: its files, and its chunks by tensor. Ranks pass it on as JSON in the folder
    itself.
    """

    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Part":
        files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
        tensors = {
            name: TensorEntry(
                entry["dtype"],
                tuple(entry["shape"]),
                tuple(
                    StoredChunk(piece["file"], piece["key"], tuple(piece["shape"]), tuple(piece["offset"]))
                    for piece in entry["pieces"]
                ),
            )
            for name, entry in values["tensors"].items()
        }
        return cls(files, tensors)


@dataclass(frozen=True)
class Manifest(Part):
    """A whole checkpoint: what all ranks wrote, its step, and the sequences read by then."""

    step: int
    sequences: int


def merge(parts: Sequence[Part]) -> Part:
    """Join the ranks' parts. RuntimeError where a tensor is not tiled exactly once, for that would load as
    garbage.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        if double := files.keys() & part.files.keys():
            raise RuntimeError(f"checkpoint file {min(double)} was written by two ranks")
        files |= part.files
        for name, entry in part.tensors.items():
            seen = tensors.get(name)
            if seen and (seen.dtype, seen.shape) != (entry.dtype, entry.shape):
                raise RuntimeError(
                    f"tensor {name}: ranks disagree: {seen.dtype} {list(seen.shape)}"
                    f" against {entry.dtype} {list(entry.shape)}"
                )
            pieces = (seen.pieces if seen else ()) + entry.pieces
            tensors[name] = TensorEntry(entry.dtype, entry.shape, pieces)
    for name, entry in tensors.items():
        _check_tiling(name, entry)
    return Part(files, tensors)


def _check_tiling(name: str, entry: TensorEntry) -> None:
    """Inside the tensor, no two at one place, volumes adding up: what a wrong owner would break, in linear
    time.
    """
    for piece in entry.pieces:
        inside = len(piece.shape) == len(piece.offset) == len(entry.shape) and all(
            low >= 0 and low + size <= full
            for low, size, full in zip(piece.offset, piece.shape, entry.shape, strict=True)
        )
        if not inside:
            raise RuntimeError(
                f"tensor {name}: piece at {list(piece.offset)} of shape {list(piece.shape)}"
                f" leaves {list(entry.shape)}"
            )
    held = sum(prod(piece.shape) for piece in entry.pieces)
    if held != prod(entry.shape) or len({piece.offset for piece in entry.pieces}) != len(entry.pieces):
        raise RuntimeError(
            f"tensor {name}: {len(entry.pieces)} owned pieces hold {held} of {prod(entry.shape)} elements:"
            " every element must be owned by exactly one rank"
        )


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True) + "\n").encode()


def digest(data: bytes) -> str:
    """xxh3_128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def encode(manifest: Manifest) -> bytes:
    """The manifest's file, with the hash over all of it but the hash itself."""
    content = {"format": FORMAT, "version": VERSION, **manifest.to_json()}
    return _canonical({**content, "xxh3_128": digest(_canonical(content))})


def read_manifest(folder: Path) -> Manifest:
    """The manifest, proven by its own hash. RuntimeError, one line, where it is missing, damaged or of
    another format.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content = json.loads(data)
        kept = content.pop("xxh3_128")
        # Byte for byte what `commit` wrote: a change that JSON forgives is still a change.
        sound = kept == digest(_canonical(content)) and data == _canonical({**content, "xxh3_128": kept})
    except FileNotFoundError:
        raise RuntimeError(f"{path}: missing: not a whole checkpoint") from None
    except OSError as error:
        raise RuntimeError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise RuntimeError(f"{path}: damaged: its content does not match its own hash")
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise RuntimeError(
            f"{path}: {content['format']} version {content['version']};"
            f" this program reads {FORMAT} version {VERSION}"
        )
    part = Part.from_json(content)
    return Manifest(part.files, part.tensors, content["step"], content["sequences"])
