"""Durable files: after a crash a file holds its old content or its new, never a part of either. And the lines
of files that users write.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_SHOWN = 100  # characters of a value in a message


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without their ends: \\n, \\r or \\r\\n. `str.splitlines` would also
    end one at U+2028 and others, which may stand in a JSON text.
    The mark with which Windows begins a file is left out.

    ValueError, one line, where it cannot be read as UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [line.removesuffix("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None


def read_each(path: str | Path, read: Callable[[str], Iterable[T]]) -> list[T]:
    """Return what `read` gives for each line of a text file, one after the other.

    ValueError, one line with the file and the line's number, where `read` raises one, or where the file
    cannot be read as UTF-8.
    """
    found: list[T] = []
    for number, line in enumerate(read_lines(Path(path)), 1):
        try:
            found += read(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def read_json_lines(path: str | Path, read: Callable[[Any], Iterable[T]]) -> list[T]:
    """Return what `read` gives for the JSON value of each line that is not blank; raises as `read_each`."""
    return read_each(path, lambda line: read(parsed(line)) if line.strip() else ())


def parsed(text: str) -> Any:
    """Return the value of a JSON text in one line. ValueError where it is none, or holds half of a surrogate
    pair, which is no character: no tokenizer takes it, and no terminal prints it.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: {error.msg.removesuffix(' at')}") from None
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = json.dumps(str(error.object)[error.start])
            raise ValueError(f"{half} is half of a surrogate pair: no character without the other") from None
    return value


def shown(value: Any) -> str:
    """Return a JSON value as a message has it: one line, a long one cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames) survive a power cut."""
    fsync_file(folder)


def fsync_file(path: Path) -> None:
    """Make the content of a file survive a power cut that a library has written."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`: one write(2) may write less than it was given."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Create `path`; its content is on disk when this returns (its name in the folder is not yet)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(
    path: Path,
    data: bytes | memoryview,
    *,
    draft: Path | None = None,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Create or replace `path` in one step; content and name are on disk when this returns.

    draft: the file to write first, beside `path`. By default `.tmp-NAME-PID`, so that two processes may write
        the same `path`. Where only one process writes at a time, give a fixed name: the next attempt then
        overwrites the draft that a killed one left.
    guard: called before the replacement; raises where this process must not write (`trainer.folder.fence`).
    """
    draft = draft or path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_durably(draft, data)
        guard()
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def look_again(path: Path) -> bool:
    """Return whether `path` is there, by the server's word where the file system is a network's.

    An NFS client remembers for up to a minute that a name was missing, and does not ask the server meanwhile
    (acdirmax in nfs(5)); listing the folder or asking for its attributes changes nothing. It forgets what it
    knows of a folder's names once it has changed the folder itself. So a file is made there, and removed.
    """
    for one in (*reversed(path.parents), path):
        if not one.exists() and not (forget_missing(one.parent) and one.exists()):
            return False
    return True


def forget_missing(folder: Path) -> bool:
    """Have an NFS client forget which names it knows as missing in `folder`; return whether it could be done.
    See `look_again`.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=".tmp-look-", dir=folder)
        os.close(descriptor)
        os.unlink(name)
    except OSError:
        return False
    return True
