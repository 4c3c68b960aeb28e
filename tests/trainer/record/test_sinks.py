"""The run's record on disk: what a killed writer leaves, and what a resume makes of it."""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trainer.folder.fence import Fence
from trainer.record import sinks
from trainer.record.events import EventLog
from trainer.record.sinks import JsonlLog, encode, records_of, truncate_after


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_json_does_not_have_becomes_null() -> None:
    assert (
        encode({"loss": math.nan, "eval": {"a": [math.inf, 1.5]}})
        == '{"loss": null, "eval": {"a": [null, 1.5]}}'
    )


def test_a_killed_writer_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import sys, os; from pathlib import Path; from trainer.record.sinks import JsonlLog\n"
        "log = JsonlLog(Path(sys.argv[1]))\n"
        "for step in range(1, 501): log.write({'step': step})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(path)] == list(range(1, 501))


def test_several_processes_share_a_file_without_mixing_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys; from pathlib import Path; from trainer.record.sinks import JsonlLog\n"
        "log, rank = JsonlLog(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for step in range(1, 301): log.write({'step': step, 'dp_rank': rank, 'sequences': list(range(200))})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(rank)]) for rank in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    seen = sorted((line["dp_rank"], line["step"]) for line in lines(path))
    assert seen == [(rank, step) for rank in range(4) for step in range(1, 301)]


def test_a_resume_drops_later_lines_and_the_torn_ones_among_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval": {"a": {"loss": 1.0}}}]
    rows = [json.dumps(row) for row in (kept[0], kept[1], kept[2], {"step": 3, "loss": 0.5})]
    path.write_text("\n".join([rows[0], rows[1], rows[3], rows[2], "[1]", rows[3], '{"step": 4']))
    assert truncate_after(path, 2) == (2, 2)
    assert lines(path) == kept
    assert truncate_after(path, 2) == (0, 0)
    assert lines(path) == kept
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert truncate_after(tmp_path / "none.jsonl", 2) == (0, 0)


def test_a_damaged_line_among_finished_steps_is_no_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'
    path.write_text(text)
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl, line 2: .*restore it"):
        truncate_after(path, 3)
    assert path.read_text() == text and os.listdir(tmp_path) == ["metrics.jsonl"]
    assert truncate_after(path, 1) == (1, 1), "after the checkpoint it may be torn"


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 4)).encode()
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        truncate_after(path, 10)
        assert [line["step"] for line in lines(path)] == list(range(1, text[:cut].count(b"\n") + 1))


def test_a_full_disk_is_said_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "write", lambda fd, data: 3)
    with pytest.raises(OSError, match=r"metrics\.jsonl: the disk is full"):
        log.write({"step": 1})


@pytest.mark.parametrize("stands_still_before", ["it asks which file is there", "it writes"])
def test_a_process_of_an_earlier_start_writes_into_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_still_before: str
) -> None:
    """It has looked at the epoch, stands still, and goes on once the next start has taken the run."""
    path, fence = tmp_path / "ledger.jsonl", Fence(tmp_path)
    fence.take()
    left_behind = JsonlLog(path, fence.check)
    left_behind.write({"step": 1})
    later = Fence(tmp_path)

    def next_start() -> None:
        later.take()
        assert truncate_after(path, 1, later.check) == (0, 0)

    if stands_still_before == "it writes":
        write = os.write
        monkeypatch.setattr(os, "write", lambda *a: monkeypatch.undo() or next_start() or write(*a))
        left_behind.write({"step": 2})
    else:
        there = left_behind._is_there
        monkeypatch.setattr(left_behind, "_is_there", lambda: next_start() or there())
        with pytest.raises(RuntimeError, match="taken over"):
            left_behind.write({"step": 2})
    assert lines(path) == [{"step": 1}]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_line_goes_to_the_file_that_is_there(tmp_path: Path, how: str) -> None:
    """Whoever writes it: not every log has a checkpointer that asks."""
    log = JsonlLog(tmp_path / "events.jsonl")
    log.write({"step": 1})
    if how == "deleted":
        log.path.unlink()
    else:
        (tmp_path / "other").write_text("")
        os.replace(tmp_path / "other", log.path)
    log.write({"step": 2})
    assert lines(log.path) == [{"step": 2}]
    assert log.sync() and not log.sync(), "told once"


def test_a_log_that_is_not_open_has_nothing_to_force_to_disk(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    log.close()
    assert not log.sync()
    log.write({"step": 2})
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(IsADirectoryError):
        log.write({"step": 3})
    assert log.sync(), "what it had is gone"


def test_what_is_known_is_copied_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "COPIED_BYTES", 7)
    monkeypatch.setattr(sinks, "LAST_BYTES", 40)
    path, steps = tmp_path / "metrics.jsonl", [*range(1, 30), 29, 29, 30]
    text = "".join(f'{{"step": {step}, "n": {n}}}\n' for n, step in enumerate(steps))
    known = text.index('{"step": 20')
    path.write_text(text[:known].upper() + text[known:] + '{"step": 31, "n"')  # that it is JSON is not asked
    assert truncate_after(path, 29, known_bytes=known) == (1, 1)
    assert path.read_text() == text[:known].upper() + text[known : text.index('{"step": 30')]
    assert [record["n"] for record in records_of(path, 29)] == [28, 29, 30]
    assert records_of(path, 30) == [] == records_of(tmp_path / "none.jsonl", 3)
    path.write_text(text[:known] + "torn\n" + text[known:])
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl, line 20: "):
        truncate_after(path, 30, known_bytes=known)


def test_no_descriptor_outlives_a_rewrite(tmp_path: Path) -> None:
    """The log opens at its first line, so what rank 0 repairs before it is the file that others write to."""
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"step": 9}\n')
    log = JsonlLog(path)
    truncate_after(path, 3)
    log.write({"step": 4})
    log.sync()
    log.close()
    assert lines(path) == [{"step": 4}]


def test_events_say_when_what_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.event("fault", 3, "a reason", rank=1)
    EventLog(None).event("fault", 3, "nobody hears this")
    (event,) = lines(tmp_path / "events.jsonl")
    assert event.pop("time").endswith("+00:00")
    assert event == {
        "kind": "fault",
        "step": 3,
        "reason": "a reason",
        "rank": 1,
        "host": socket.gethostname(),
    }
    log.event("save", 4, "as planned")
    assert capsys.readouterr().err == "fault at step 3: a reason\n"


def test_events_from_many_threads_stay_whole(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    draw = random.Random(0)
    texts = ["x" * draw.randrange(2000) for _ in range(200)]
    threads = [threading.Thread(target=log.event, args=("note", i, text)) for i, text in enumerate(texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["step"] for event in lines(tmp_path / "events.jsonl")) == list(range(200))
