"""Append-only JSON Lines: `metrics.jsonl`, `events.jsonl`, and what `shared_log` writes.

The rule of durability: every line is one write(2) on a descriptor opened with O_APPEND, made before `write`
returns. So a killed process loses no line, several processes share a file without mixing their lines, and
there is no buffer to flush; it costs some ten microseconds, the check of the run's epoch included
(`trainer.folder.fence`). A power cut may lose what the kernel had not written yet, so the checkpointer calls
`sync` before it commits: lines up to a checkpoint's step are on disk whenever the checkpoint is. At the
resume `truncate_after` drops later ones, for they will be written again.
"""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from common.files import fsync_folder
from trainer.folder.fence import Guard, unfenced

COPIED_BYTES = 4 << 20  # at a time
LAST_BYTES = 64 << 10  # holds the lines of a step, as a rule

Known = Callable[[Path], int | None]
"""How many bytes at the start of a file are known to be lines up to the step of a checkpoint; None: all."""

_strict = json.JSONEncoder(allow_nan=False).encode


def encode(record: Mapping[str, Any]) -> str:
    """One JSON object on one line; NaN and infinities, which JSON does not have, become null."""
    try:
        return _strict(record)
    except ValueError:
        return _strict(_finite(record))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def nothing_known(path: Path) -> int | None:
    """The `Known` of a start that resumes no checkpoint."""
    return 0


class JsonlLog:
    """Appends objects to a JSON Lines file, which is opened at the first line.

    Opening late lets one rank repair the file (`truncate_after`) after the others built their logs: a
    descriptor opened before the rename would write into the file that the rename replaced.

    `guard` raises where this process may write no more. `name`: what the log is called.
    """

    def __init__(self, path: Path, guard: Guard = unfenced) -> None:
        self.path = path
        self.name = path.name
        self._guard = guard
        self._fd = -1
        self._dirty = False
        self._gone = False
        self._lock = threading.Lock()  # the checkpointer's thread syncs while the loop writes

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line, which survives this process from the return on. OSError where the file cannot be
        written, RuntimeError where a later start of the run writes it.
        """
        line = (encode(record) + "\n").encode()
        self._guard()
        with self._lock:
            if self._fd < 0 or not self._is_there():
                self._open()
                self._guard()  # the file may be that of a start which has come since the first check
            self._dirty = True
            self._append(self._fd, line)

    def _append(self, descriptor: int, line: bytes) -> None:
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{self.path}: the disk is full: a line was cut short; free space and resume")

    def sync(self) -> bool:
        """Force the lines written so far to disk. Return whether the file was deleted or replaced since the
        last call: its lines are gone, and the next lines go to the file that is there now.
        """
        with self._lock:
            if self._dirty:
                self._dirty = False
                os.fsync(self._fd)
            if self._fd >= 0 and not self._is_there():
                self._guard()
                self._open()
            gone, self._gone = self._gone, False
            return gone

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd, self._dirty = -1, False  # what is forced to disk is an open file

    def cut_after(self, step: int, known: Known = nothing_known) -> tuple[int, int]:
        """Drop the lines of steps after `step` as `truncate_after` does; return how many (later, torn) lines
        were dropped. Only for the rank that repairs the record, and a log that is closed.
        """
        return truncate_after(self.path, step, self._guard, known_bytes=known(self.path) or 0)

    def _open(self) -> None:
        """Open the file at the path now, and close one that was there before."""
        if self._fd >= 0:
            before, self._fd = self._fd, -1  # first, for opening may fail
            self._dirty, self._gone = False, True
            os.close(before)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _is_there(self) -> bool:
        """Whether the open file is still the one at the path."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False


def truncate_after(
    path: Path, step: int, guard: Guard = unfenced, *, known_bytes: int = 0
) -> tuple[int, int]:
    """Drop the lines of steps after `step`, and torn lines, by an atomic rewrite. Return how many (later,
    torn) lines were dropped.

    The file is replaced, also where nothing was dropped: a process of an earlier start that still has the old
    file open can add nothing to the record.

    The first `known_bytes` are copied without parsing: a checkpoint of `step` or before has noted them
    (`digest`), and they have not changed.

    Torn lines come from a death in the middle of a write, or a full disk. By the rule above they are newer
    than the last checkpoint, so their content will be written again. RuntimeError where a torn line stands
    before a line of a step that is kept: no death of ours leaves that.
    """
    path = path.resolve()  # of a link, the file that it leads to
    if not path.exists():
        return 0, 0
    later = torn = 0
    first_torn = 0  # its number, from 1
    part = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with path.open("rb") as old, part.open("wb") as new:
        _copy(old, new, known_bytes)
        for number, line in enumerate(old, 1):
            at = step_of(line)
            if at is None:
                torn += 1
                first_torn = first_torn or number
            elif at > step:
                later += 1
            elif first_torn:
                part.unlink()
                first_torn += _lines_in(path, known_bytes)
                raise RuntimeError(
                    f"{path}, line {first_torn}: not a JSON object with a step, though finished steps "
                    "follow: the file was damaged; restore it, or delete that line to go on without it"
                )
            else:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    try:
        guard()
    except RuntimeError:
        part.unlink()
        raise
    os.replace(part, path)
    fsync_folder(path.parent)
    return later, torn


def drop_torn_tail(path: Path) -> int:
    """Remove a last line that was cut, or the next line would be lost with it; return the bytes removed. A
    last line that only lacks its line end gets one. Only for the start that holds the folder, and for logs
    that `truncate_after` does not rewrite.
    """
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size, window = file.seek(0, os.SEEK_END), LAST_BYTES
        while True:
            file.seek(max(0, size - window))
            _, end, tail = file.read().rpartition(b"\n")
            if end or window >= size:
                break
            window *= 4
        if not tail:
            return 0
        if step_of(tail + b"\n") is None:
            file.truncate(size - len(tail))
            return len(tail)
        file.write(b"\n")
        return 0


def _copy(old: BinaryIO, new: BinaryIO, count: int) -> None:
    while count and (data := old.read(min(count, COPIED_BYTES))):
        new.write(data)
        count -= len(data)


def _lines_in(path: Path, count: int) -> int:
    """How many lines the first `count` bytes hold."""
    with path.open("rb") as file:
        return file.read(count).count(b"\n")


def records_of(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the objects of `step`, the last step of a file after `truncate_after`; read from its end."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size, window = file.seek(0, os.SEEK_END), LAST_BYTES
        while True:
            start = file.seek(max(0, size - window))
            lines = file.read().splitlines(keepends=True)
            if start:
                del lines[0]  # a part of one
            if not start or (lines and (step_of(lines[0]) or 0) < step):
                return [json.loads(line) for line in lines if step_of(line) == step]
            window *= 4


def step_of(line: bytes) -> int | None:
    """Return the line's step; None where the line is not a whole JSON object with a step."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = orjson.loads(line)  # a sixth of the time that json takes, and a ledger has many lines
    except ValueError:
        return None
    at = record.get("step") if isinstance(record, dict) else None
    return at if isinstance(at, int) else None


def last_step(folder: Path) -> int:
    """Return the step of the last whole line of a run's metrics.jsonl; 0 where there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.readlines()
    except OSError:
        return 0
    return next((step for line in reversed(lines) if (step := step_of(line)) is not None), 0)
