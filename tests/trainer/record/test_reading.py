"""JSON Lines and events, read while they are written and though lines are damaged."""

import json
from pathlib import Path

import pytest

from trainer.record.events import EventLog, read_events
from trainer.record.reading import LINE_BYTES, newest, objects

DAMAGED = (b"[1]", b"{", b"\x00\xff", b"[" * 100_000, b"3", b"")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_costs_no_other(file: Path, damaged: bytes) -> None:
    file.write_bytes(b'{"a": 1}\n' + damaged + b'\n{"a": 2}\n')
    assert [value for _, value in objects(file)] == [{"a": 1}, None, {"a": 2}]
    assert list(newest(file)) == [{"a": 2}, {"a": 1}]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(file: Path) -> None:
    file.write_bytes(b'{"a": 1}\n{"a": ')
    ((position, first),) = objects(file)
    assert first == {"a": 1} and position == len(b'{"a": 1}\n')
    with file.open("ab") as more:
        more.write(b"2}\n")
    assert list(objects(file, position)) == [(file.stat().st_size, {"a": 2})]


def test_a_line_without_end_is_given_up(file: Path) -> None:
    file.write_bytes(b"x" * (LINE_BYTES + 10) + b'\n{"a": 1}\n')
    assert [value for _, value in objects(file)] == [None, None, {"a": 1}]


def test_events_are_those_that_the_log_wrote(file: Path) -> None:
    assert list(read_events(file)) == []
    log = EventLog(file, shown=False)
    log.event("start", 0, "new run", ranks=2)
    behind = file.stat().st_size
    with file.open("a") as lines:
        lines.write(json.dumps({"kind": 1}) + "\n" + json.dumps({"step": 1}) + "\n{torn\n")
    log.event("save", 5, "every 5 steps")
    log.close()
    assert [(event["kind"], event["step"]) for event in read_events(file)] == [("start", 0), ("save", 5)]
    assert [event["kind"] for event in read_events(file, behind)] == ["save"]


def test_events_that_cannot_be_read_are_no_empty_list(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a start would take a run with a record for a new one."""
    file.touch()

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        list(read_events(file))
