"""Events are written apart from those of other processes, and whatever those do."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from common.lock import locked
from trainer.record import events
from trainer.record.events import EventLog, read_events


def steps(path: Path) -> list[int]:
    return [event["step"] for event in read_events(path)]


def test_a_line_is_written_under_the_files_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock also makes an NFS client ask for the file's length, and send the line before it unlocks."""
    path, done = tmp_path / "events.jsonl", []
    flock, write = fcntl.flock, os.write

    def noted_flock(descriptor: int, how: int) -> None:
        done.append("unlock" if how == fcntl.LOCK_UN else "lock")
        flock(descriptor, how)

    def noted_write(descriptor: int, data: bytes) -> int:
        done.append("write")
        return write(descriptor, data)

    log = EventLog(path)
    monkeypatch.setattr(fcntl, "flock", noted_flock)
    monkeypatch.setattr(os, "write", noted_write)
    log.event("save", 1, "")
    log.event("save", 2, "")
    assert done == ["lock", "write", "unlock"] * 2 and steps(path) == [1, 2]
    with locked(path, patience_seconds=0.0):  # it is free again
        pass


def test_a_process_that_stopped_while_it_wrote_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "APART_SECONDS", 0.05)
    path = tmp_path / "events.jsonl"
    path.touch()
    with locked(path):
        EventLog(path).event("save", 1, "")
    assert steps(path) == [1]


def test_without_locks_events_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    EventLog(tmp_path / "events.jsonl").event("save", 1, "")
    assert steps(tmp_path / "events.jsonl") == [1]
