"""Small files of named arrays with a hash of their own, which anybody can make again: so nothing is lost
where one is damaged: a reader notes that, goes on without, and one of all processes says so.

    FOLDER/NAME.safetensors    arrays; in the header's metadata `about`: `head`, any JSON object, and
                               `xxh3_128`, a hash of the head and of all arrays with their names and shapes

Tables(folders)   the folders where such files are looked for, and written
parse(bytes)      one file's content
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from common.files import write_atomically
from common.mapped_file import map_file

_TYPES: dict[str, np.dtype] = {"I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_LENGTH_BYTES = 8  # of the header, which begins a safetensors file


class Table(NamedTuple):
    """What one file holds. The arrays are views of its bytes, not to be written to."""

    head: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Bounded(Protocol):
    """A folder of tables that may hold so many bytes only."""

    def note_use(self, path: Path) -> None:
        """Note that the file at `path` was read now, if the folder is this one."""

    def make_room(self, path: Path, size: int) -> None:
        """Make room for a file of `size` bytes at `path`, if the folder is this one. OSError where there
        cannot be any.
        """


class Tables:
    """Files of tables in some folders.

    folders: where a file is looked for, in this order.
    bounded: one of these folders, if it is bounded.
    damaged: the path or URL of each file that was found damaged → one line that says so.
    """

    def __init__(self, folders: Sequence[Path], bounded: Bounded | None = None) -> None:
        self.folders, self._bounded = tuple(folders), bounded
        self.damaged: dict[str, str] = {}
        self._told: set[str] = set()

    def tell(self) -> None:
        """Say on standard error which files are damaged, each once."""
        for where, line in self.damaged.items():
            if where not in self._told:
                self._told.add(where)
                print(line, file=sys.stderr, flush=True)

    def note_damage(self, where: str, error: Exception) -> None:
        """Note that the file at a path or URL is damaged."""
        self.damaged[where] = (
            f"{where} is damaged ({error}): the indexes are read instead, and a run makes it anew if it can"
        )

    def was_damaged(self, name: str) -> bool:
        """Whether a file NAME was found damaged."""
        return any(Path(where).name == _file(name) for where in self.damaged)

    def read(self, name: str, head: Mapping[str, Any]) -> Table | None:
        """The first whole file NAME whose head has these values; None where there is none. What is damaged is
        noted.
        """
        for path in self._paths(name):
            try:
                found = parse(map_file(path))
            except OSError:
                continue
            except ValueError as error:
                self.note_damage(str(path), error)
                continue
            if head.items() <= found.head.items():
                if self._bounded is not None:
                    self._bounded.note_use(path)
                return found
        return None

    def write(self, name: str, table: Table, *, last: bool = False) -> None:
        """Write the file NAME in one step, in the first folder that can be written; where none can, the table
        is made again when it is needed.

        last: in the last of the folders alone.
        """
        self.write_bytes(name, encode(table), last=last)

    def write_bytes(self, name: str, content: bytes, *, last: bool = False) -> None:
        """As `write`, of a file's content."""
        for path in self._paths(name)[-1 if last else 0 :]:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if self._bounded is not None:
                    self._bounded.make_room(path, len(content))
                # Two nodes may have processes of one number, and two threads are of one process.
                draft = path.with_name(f".tmp-{path.name}-{secrets.token_hex(8)}")
                write_atomically(path, content, draft=draft)
            except OSError:  # read-only, full, of another user
                continue
            return

    def _paths(self, name: str) -> list[Path]:
        return [folder / _file(name) for folder in self.folders]


def _file(name: str) -> str:
    return f"{name}.safetensors"


def encode(table: Table) -> bytes:
    """The content of a file: the same for the same head and arrays."""
    from safetensors.numpy import save

    text = json.dumps(table.head, sort_keys=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in table.arrays.items()}
    # One entry, for the package writes several in any order.
    about = {"head": table.head, "xxh3_128": _hash(text, arrays)}
    return save(arrays, {"about": json.dumps(about, sort_keys=True)})  # type: ignore[arg-type]


def parse(view: memoryview) -> Table:
    """The head and the arrays in a file's bytes. Raises ValueError where they do not have the hash that the
    file states.
    """
    try:
        end = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
        header = json.loads(bytes(view[_LENGTH_BYTES:end]))
        about = json.loads(header.pop("__metadata__")["about"])
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            values = np.frombuffer(view[end + first : end + last], _TYPES[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"])
        found = Table(about["head"], arrays)
        wrong = about["xxh3_128"] != _hash(json.dumps(about["head"], sort_keys=True), arrays)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it cannot be read: {type(error).__name__}") from None
    if wrong:
        raise ValueError("it does not have the hash that it states")
    return found


def _hash(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    names = sorted(arrays)
    shapes = [[name, str(arrays[name].dtype), arrays[name].shape] for name in names]
    hasher = xxhash.xxh3_128(json.dumps([text, shapes]).encode())
    for name in names:
        hasher.update(arrays[name].reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
