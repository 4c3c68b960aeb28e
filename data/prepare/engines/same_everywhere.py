"""Has every process that works on a preparation the same folder, the same code and the same libraries?

The bytes of a corpus depend on the libraries that read and tokenise; and a node that has a folder of its own
under the name of the shared one would write units that nobody finds.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data.prepare.preparation import write_json

_MARK = "shared.json"
_LIBRARIES = ("numpy", "tokenizers", "pyarrow", "rensa", "ftfy", "xxhash", "pillow", "webdataset")


@dataclass(frozen=True)
class Mark:
    """What a command has left in its folder, to be found there by all its processes.

    scratch: the folder.
    working: the command's working folder, at which relative paths of sources start.
    key: drawn by this command.
    versions: name → version of what the bytes depend on, as pairs.
    """

    scratch: Path
    working: Path
    key: str
    versions: tuple[tuple[str, str], ...]


def leave(scratch: Path) -> Mark:
    """Leave a mark in the folder."""
    mark = Mark(scratch.absolute(), Path.cwd(), secrets.token_hex(8), versions())
    write_json(scratch / _MARK, mark.key)
    return mark


def remove(mark: Mark) -> None:
    """Remove the mark."""
    (mark.scratch / _MARK).unlink(missing_ok=True)


@functools.cache
def check(mark: Mark) -> None:
    """Raise ValueError where this process does not see the mark, or works with other versions."""
    path, node = mark.scratch / _MARK, socket.gethostname()
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        found = None
    if found != mark.key:
        raise ValueError(
            f"node {node} does not see {path} as this command has written it: --out must be on storage "
            "that all nodes share under one name (NFS, Lustre), as must the sources"
        )
    with contextlib.suppress(OSError):  # it may be of this machine alone, where all paths are absolute
        os.chdir(mark.working)
    mine = dict(versions())
    for name, version in mark.versions:
        if mine[name] != version:
            raise ValueError(
                f"node {node} has {name} {mine[name]} and this machine {version}, which may make other "
                "bytes: install the same on all nodes"
            )


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """(name, version) of what the bytes of a corpus depend on; germinal's is a hash of its code."""
    code = xxhash.xxh3_64()
    package = Path(__file__).parents[2]
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    python = f"{platform.python_version()} with Unicode {unicodedata.unidata_version}"
    found = [("germinal's code", code.hexdigest()), ("Python", python)]
    for name in _LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)
